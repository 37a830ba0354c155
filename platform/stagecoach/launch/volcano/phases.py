"""From what a cluster shows of one Volcano Job to one JobState. Pure."""

from dataclasses import dataclass
from typing import Any

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState
from stagecoach.launch.kube.marks import GIVEN_UP, PAUSED, STOPPED, WHY_STOPPED, annotations
from stagecoach.launch.kube.podstate import PodView, exit_code_of, starting_trouble, told
from stagecoach.launch.local_phase import LedgerView

Obj = dict[str, Any]

ENDING = ("Aborting", "Terminating", "Completing")
OVER = ("Failed", "Terminated")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was read of one job."""

    job: Obj
    group: Obj | None = None  # Volcano's PodGroup, which says why a gang waits
    pods: tuple[PodView, ...] = ()

    @property
    def nodes(self) -> int:
        return len(self.job["spec"]["tasks"])


def stop_of(job: Obj) -> str | None:
    """Why we aborted it; None where we did not."""
    return annotations(job).get(STOPPED)


def job_state(seen: Seen, ledger: LedgerView | None = None, *, ledger_code: int | None = None) -> JobState:
    """`ledger` None: the bucket was not read. `ledger_code` is how the newest attempt ended there."""
    status = seen.job.get("status") or {}
    state = status.get("state") or {}
    phase, reason, code = _phase(seen, state, ledger, ledger_code)
    attempts = ledger.attempts if ledger else 0
    return JobState(
        phase=phase,
        reason=reason,
        since=state.get("lastTransitionTime") or seen.job["metadata"].get("creationTimestamp"),
        attempt=ledger.newest if ledger else None,
        restarts=max(int(status.get("retryCount") or 0), attempts - 1, 0),
        exit_code=code,
    )


def _phase(seen: Seen, state: Obj, ledger: LedgerView | None, ledger_code: int | None) -> tuple[Phase, str, int | None]:
    says, message = state.get("phase"), state.get("message") or state.get("reason") or ""
    if says == "Completed":
        return Phase.SUCCEEDED, "", int(ExitCode.DONE)
    if says == "Aborted":
        return _aborted(seen, message)
    if says in OVER:
        code, why = _failure(seen, ledger_code)
        return Phase.FAILED, why or message or f"Volcano says {says}", code
    if says in ENDING:
        return Phase.STOPPING, message or f"Volcano says {says}", None
    if says == "Restarting":
        return Phase.RESTARTING, message or "the gang is started again", None
    if says == "Running":
        return *_running(seen, ledger), None
    return Phase.QUEUED, _why_pending(seen) or message or "Volcano has not looked at it yet; does its scheduler run?", None


def _aborted(seen: Seen, message: str) -> tuple[Phase, str, int | None]:
    why = annotations(seen.job).get(WHY_STOPPED)
    if stop_of(seen.job) == PAUSED:
        return Phase.PAUSED, why or "paused", None
    if stop_of(seen.job) == GIVEN_UP:
        return Phase.FAILED, why or "given up", int(ExitCode.BAD_CONFIG)
    return Phase.CANCELLED, why or message or "cancelled", int(ExitCode.STOPPED)


def _failure(seen: Seen, ledger_code: int | None) -> tuple[int, str]:
    ended = [pod for pod in seen.pods if pod.exit_code not in (None, 0)]
    if ended:
        code = exit_code_of(pod.exit_code for pod in ended if pod.exit_code is not None)
        return code, "; ".join(told(pod) for pod in ended if pod.exit_code is not None and exit_code_of([pod.exit_code]) == code)
    if ledger_code is not None:
        return ledger_code, f"the ledger says that its newest attempt ended with {ledger_code}"
    return int(ExitCode.RETRY), "a pod died without a word (deleted, killed, or its node was lost)"


def _why_pending(seen: Seen) -> str:
    for item in ((seen.group or {}).get("status") or {}).get("conditions") or ():
        if item.get("type") == "Unschedulable" and item.get("status") == "True":
            return str(item.get("message") or item.get("reason") or "")
    return starting_trouble(seen.pods)


def _running(seen: Seen, ledger: LedgerView | None) -> tuple[Phase, str]:
    if trouble := starting_trouble(seen.pods):
        return Phase.STARTING, trouble
    alive = [pod for pod in seen.pods if pod.is_running or pod.exit_code == 0]
    if len(alive) < seen.nodes:
        return Phase.STARTING, f"{len(alive)} of {seen.nodes} pods run"
    if ledger is None:
        return Phase.RUNNING, ""
    if ledger.newest is None:
        return Phase.STARTING, "no attempt claimed yet"
    return (Phase.RUNNING, "") if ledger.all_joined else (Phase.STARTING, f"attempt {ledger.newest} waits for its nodes to join")
