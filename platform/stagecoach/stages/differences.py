"""What differs between the plan that a run froze and the one that is asked for now."""

from typing import NoReturn

from stagecoach.contract.identity import identity_fields
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import leaves, shortened
from stagecoach.errors import ConfigError

SHOWN = 8


class OtherPlan(ConfigError):
    """The run froze another plan for the stage than the one that is asked for."""


def plan_differences(frozen: StagePlan, asked: StagePlan) -> list[str]:
    """`path: there A, asked B` for every value that decides the weights and differs."""
    old, new = leaves(identity_fields(frozen)), leaves(identity_fields(asked))
    missing = object()
    return [
        f"{asked.name}.{path}: there {shortened(str(old.get(path)))}, asked {shortened(str(new.get(path)))}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, missing) != new.get(path, missing)
    ]


def refuse_other_plan(run_id: str, frozen: StagePlan, asked: StagePlan) -> NoReturn:
    """Raises OtherPlan: a run never continues as another one."""
    found = plan_differences(frozen, asked)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise OtherPlan(
        f"run {run_id} has frozen another plan for stage {asked.name}: {'; '.join(found[:SHOWN])}{more}. "
        "Ask for the same to go on with it, or give --run-id another name to begin a new run"
    )
