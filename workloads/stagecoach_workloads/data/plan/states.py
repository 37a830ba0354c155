"""The table of states beside a plan: where every window of rows begins, so that any step that was ever planned is reached at once.

It says nothing that the plan does not say; without it a step is reached by packing everything before it once more. It is written whole,
over the one before it, and merged with that one, so a kill leaves the older table.
"""

import json
from typing import Any

from stagecoach.contract.records import canonical_json
from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound, ObjectCorrupt
from stagecoach_workloads.data.plan.plan import DataPlan

STATES_FORMAT = "stagecoach.data_states/1"
EVERY_STEPS = 1000  # how often a trainer writes it: what lies behind the last write is packed again


def states_key(stage: str) -> str:
    """Where a job keeps it, beside its plan."""
    return f"data/states-{stage}.json"


def write_state_table(store: Store, key: str, plan: DataPlan) -> int:
    """Publishes all windows that are known, those of the table that stands there included. Returns how many there are."""
    load_state_table(store, key, plan)
    marks = plan.marks()
    store.publish(key, canonical_json({"format": STATES_FORMAT, "plan": plan.digest, "streams": marks}))
    return sum(map(len, marks.values()))


def load_state_table(store: Store, key: str, plan: DataPlan) -> int:
    """Teaches the plan the windows of the table at `key`. Returns how many; 0 when there is no table, or it is another plan's.

    Raises DataError when it is damaged: a wrong window would change the order of the data.
    """
    try:
        table: dict[str, Any] = json.loads(store.read(key))
    except NotFound:
        return 0
    except (ValueError, ObjectCorrupt) as error:
        raise DataError(f"{store.uri_of(key)}: the table of data states is damaged ({error}); delete it, it is made again") from None
    if table.get("format") != STATES_FORMAT or table.get("plan") != plan.digest:
        return 0
    plan.learn_marks(table["streams"])
    return sum(map(len, table["streams"].values()))
