"""What Prefect's server does by itself: a silent flow run becomes CRASHED and is run again, and somebody is told what needs a person.

Open-source Prefect never notices that a flow's process is gone: here its heartbeat's absence says it. Automations are known by their names,
so applying them again replaces them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict
from pydantic import SecretStr

from stagecoach_flows.artifacts import ENDED_EVENT, PROGRESS_EVENT, QUEUED_EVENT
from stagecoach_flows.in_place import TAG as IN_PLACE

TAG = "stagecoach-run"  # of deployments whose runs train
BLOCK = "stagecoach-notices"
HEARTBEAT = "prefect.flow-run.heartbeat"
FINAL = {"prefect.flow-run.Completed", "prefect.flow-run.Failed", "prefect.flow-run.Cancelled", "prefect.flow-run.Crashed"}
Match = dict[str, str | list[str]]
RUN: Match = {"prefect.resource.id": "prefect.flow-run.*"}
STAGE: Match = {"prefect.resource.id": "stagecoach.stage.*"}
OURS: Match = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
ANYONES: Match = {"prefect.resource.id": [f"prefect.tag.{TAG}", f"prefect.tag.{IN_PLACE}"], "prefect.resource.role": "tag"}
EACH = {"prefect.resource.id"}


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """`silent_s`: without a heartbeat of the flow's process. `pending_s`: a job without a machine. `stalled_s`: without a new step."""

    silent_s: float = 90.0
    pending_s: float = 3600.0
    stalled_s: float = 1800.0


def apply_automations(client: SyncPrefectClient, *, resume_id: str, deadlines: Deadlines, webhook: str | None) -> dict[str, str]:
    """Creates or replaces them. Returns name -> id. Without `webhook` there are no notices, and earlier ones are removed."""
    block = save_webhook(webhook) if webhook else None
    kept = [*recovering(resume_id, deadlines), *(notices(block, deadlines) if block is not None else ())]
    made = {automation.name: str(apply(client, automation)) for automation in kept}
    for automation in client.read_automations():
        if automation.name.startswith("stagecoach: ") and automation.name not in made:
            client.delete_automation(automation.id)
    return made


def apply(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    """One of each name; what a race of two deployers left double is removed. What stands there already is not written again: the server
    forgets with it whom it heard, and a flow that the same upgrade cut off would never be found silent."""
    there = client.read_automations_by_name(automation.name)
    for double in there[1:]:
        client.delete_automation(double.id)
    if not there:
        return client.create_automation(automation)
    if any(getattr(there[0], field) != getattr(automation, field) for field in AutomationCore.model_fields):
        client.update_automation(there[0].id, automation)
    return there[0].id


def recovering(resume_id: str, deadlines: Deadlines) -> Iterator[AutomationCore]:
    """Silent becomes CRASHED; CRASHED is run again by the `resume` flow, which attaches to the job that trained on meanwhile."""
    yield AutomationCore(
        name="stagecoach: a silent run has crashed",
        description="The flow's process sends no heartbeat any more. Its job trains on; the resume flow attaches to it.",
        trigger=EventTrigger(
            match=RUN, match_related=OURS, for_each=EACH, after={HEARTBEAT}, expect={HEARTBEAT, *FINAL}, posture=Posture.Proactive,
            threshold=1, within=timedelta(seconds=deadlines.silent_s),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="no heartbeat: the flow's process is gone", force=False)],
    )  # fmt: skip
    again: list[ActionTypes] = [RunDeployment(source="selected", deployment_id=UUID(resume_id), parameters=None, job_variables=None)]
    yield AutomationCore(
        name="stagecoach: a crashed run is resumed",
        description="Starts the resume flow, which finds runs that should be running and are not.",
        trigger=EventTrigger(
            match=RUN, match_related=OURS, for_each=EACH, expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, threshold=1
        ),
        actions=again,
    )


def notices(block: UUID, deadlines: Deadlines) -> Iterator[AutomationCore]:
    """Failed, pending longer than T, no progress."""
    yield AutomationCore(
        name="stagecoach: notice of a failed run",
        trigger=EventTrigger(
            match=RUN, match_related=ANYONES, for_each=EACH, expect={"prefect.flow-run.Failed"}, posture=Posture.Reactive, threshold=1
        ),
        actions=[tell(block, "failed", "a run failed for good; `stagecoach explain` says why")],
    )
    yield AutomationCore(
        name="stagecoach: notice of a pending job",
        trigger=EventTrigger(
            match=STAGE, for_each=EACH, after={QUEUED_EVENT}, expect={PROGRESS_EVENT, ENDED_EVENT}, posture=Posture.Proactive, threshold=1,
            within=timedelta(seconds=deadlines.pending_s),
        ),
        actions=[tell(block, "pending", f"a job has had no machine for {deadlines.pending_s:g} s")],
    )  # fmt: skip
    yield AutomationCore(
        name="stagecoach: notice of no progress",
        trigger=EventTrigger(
            match=STAGE, for_each=EACH, after={PROGRESS_EVENT}, expect={PROGRESS_EVENT, ENDED_EVENT}, posture=Posture.Proactive,
            threshold=1, within=timedelta(seconds=deadlines.stalled_s),
        ),
        actions=[tell(block, "no_progress", f"no new step for {deadlines.stalled_s:g} s")],
    )  # fmt: skip


def tell(block: UUID, kind: str, text: str) -> CallWebhook:
    """A JSON object; the server fills in which run or stage it is about."""
    payload: dict[str, Any] = {
        "kind": kind,
        "about": "{{ event.resource.id }}",
        "text": f"Stagecoach: {text} ({{{{ event.resource.id }}}})",
    }
    return CallWebhook(block_document_id=block, payload=json.dumps(payload))


def save_webhook(url: str) -> UUID:
    """The address is a secret: it stands encrypted in the server's block, and nowhere else."""
    saved = Webhook(method="POST", url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"})).save(BLOCK, overwrite=True)
    assert isinstance(saved, UUID)
    return saved
