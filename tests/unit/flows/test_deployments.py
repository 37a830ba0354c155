"""Deployments as code and as `prefect.yaml` say the same; automations say what they should; no server is needed for that."""

from pathlib import Path
from uuid import UUID, uuid4

import yaml
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.utilities.importtools import import_object

from stagecoach_flows.automations import HEARTBEAT, TAG, Deadlines, apply, notices, recovering
from stagecoach_flows.deploy import HEARTBEAT_S, POOL, wanted
from stagecoach_flows.resume import DEPLOYMENT

ROOT = Path(__file__).parents[3]


def test_prefect_yaml_names_the_same_deployments_as_the_code() -> None:
    told = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())["deployments"]
    coded = {one.flow.name: one for one in wanted("file:///r")}
    assert [entry["flow_name"] for entry in told] == list(coded)
    for entry in told:
        one = coded[entry["flow_name"]]
        assert import_object(entry["entrypoint"]) is one.flow
        assert entry["name"] == DEPLOYMENT
        assert entry["work_pool"]["name"] == POOL
        assert entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_S)
        assert (TAG in entry["tags"]) == (TAG in one.tags)
        assert ("concurrency_limit" in entry) == one.singleton
        slugs = [schedule["slug"] for schedule in entry.get("schedules", [])]
        assert slugs == ([one.schedule.slug] if one.schedule is not None else [])


def test_a_silent_run_becomes_crashed_and_a_crashed_one_is_resumed() -> None:
    resume_id = uuid4()
    silent, crashed = recovering(str(resume_id), Deadlines(silent_s=120))
    assert isinstance(silent.trigger, EventTrigger)
    assert (silent.trigger.posture, silent.trigger.within.total_seconds()) == (Posture.Proactive, 120)
    assert silent.trigger.after == {HEARTBEAT}
    assert HEARTBEAT in silent.trigger.expect
    assert silent.actions[0].model_dump()["state"] == "CRASHED"
    assert crashed.actions[0].model_dump()["deployment_id"] == resume_id


def test_notices_are_of_failed_pending_and_stalled_runs() -> None:
    kinds = [str(automation.actions[0].model_dump()["payload"]) for automation in notices(uuid4(), Deadlines())]
    assert [kind in text for kind, text in zip(("failed", "pending", "no_progress"), kinds, strict=True)] == [True] * 3


class Server:
    """Keeps automations, and what was written over."""

    def __init__(self) -> None:
        self.kept: dict[str, Automation] = {}
        self.updated: list[str] = []

    def read_automations_by_name(self, name: str) -> list[Automation]:
        return [one for one in self.kept.values() if one.name == name]

    def create_automation(self, automation: AutomationCore) -> UUID:
        made = Automation(id=uuid4(), **automation.model_dump())
        self.kept[str(made.id)] = made
        return made.id

    def update_automation(self, automation_id: UUID, automation: AutomationCore) -> None:
        self.updated.append(automation.name)
        self.kept[str(automation_id)] = Automation(id=automation_id, **automation.model_dump())


def test_an_automation_that_stands_there_already_is_not_written_again() -> None:
    """The server forgets whose heartbeat it heard when an automation is written, also where nothing of it changes."""
    server, resume_id = Server(), str(uuid4())
    first = [apply(server, one) for one in recovering(resume_id, Deadlines())]  # type: ignore[arg-type]
    assert [apply(server, one) for one in recovering(resume_id, Deadlines())] == first  # type: ignore[arg-type]
    assert server.updated == []
    assert [apply(server, one) for one in recovering(resume_id, Deadlines(silent_s=60))] == first  # type: ignore[arg-type]
    assert server.updated == ["stagecoach: a silent run has crashed"]
