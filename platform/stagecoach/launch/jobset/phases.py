"""From what a cluster shows of one JobSet to one JobState. Pure, so that every case stands in a table of tests.

Kueue's Workload says whether the job may run, the JobSet whether it is over, the pods what they are doing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState
from stagecoach.launch.kube.marks import CANCELLED, GIVEN_UP, PAUSED, STOPPED, WHY_STOPPED
from stagecoach.launch.kube.podstate import PodView, exit_code_of, starting_trouble, told
from stagecoach.launch.local_phase import LedgerView

Obj = dict[str, Any]

_EXIT_CODE = re.compile(r"exit code (\d+)")
_OVERTIME, _OVERTIME_TOLD = "MaximumExecutionTimeExceeded", "maximum execution time"  # in a reason, in a message: by Kueue's version


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was read of one job. `workload` None: Kueue has none (yet), or does not manage it."""

    jobset: Obj
    workload: Obj | None = None
    pods: tuple[PodView, ...] = ()
    jobs: tuple[Obj, ...] = ()
    is_queued: bool = True  # the JobSet names a queue
    nodes: int = 1


@dataclass(frozen=True)
class Condition:
    """One condition of an object; the empty one is false."""

    is_true: bool = False
    reason: str = ""
    message: str = ""
    since: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A phase with its reason."""

    phase: Phase
    reason: str = ""
    since: str | None = None
    exit_code: int | None = None


def condition(thing: Obj | None, kind: str) -> Condition:
    """The condition of that type."""
    for item in ((thing or {}).get("status") or {}).get("conditions") or ():
        if item.get("type") == kind:
            return Condition(
                is_true=item.get("status") == "True",
                reason=item.get("reason") or "",
                message=item.get("message") or "",
                since=item.get("lastTransitionTime"),
            )
    return Condition()


def job_state(seen: Seen, ledger: LedgerView | None = None, *, ledger_code: int | None = None) -> JobState:
    """`ledger` None: the bucket was not read. `ledger_code` is how the newest attempt ended there."""
    found = _phase(seen, ledger, ledger_code)
    restarts = int((seen.jobset.get("status") or {}).get("restarts") or 0)
    attempts = ledger.attempts if ledger else 0
    return JobState(
        phase=found.phase,
        reason=found.reason,
        since=found.since or seen.jobset["metadata"].get("creationTimestamp"),
        attempt=ledger.newest if ledger else None,
        restarts=max(restarts, attempts - 1, 0),
        exit_code=found.exit_code,
    )


def _phase(seen: Seen, ledger: LedgerView | None, ledger_code: int | None) -> Found:
    return (
        _ended(seen, ledger_code)
        or _deleted(seen)
        or _stopped_by_us(seen)
        or _deactivated(seen)
        or _waiting(seen)
        or _admitted(seen, ledger)
    )


def _ended(seen: Seen, ledger_code: int | None) -> Found | None:
    completed, failed = condition(seen.jobset, "Completed"), condition(seen.jobset, "Failed")
    if completed.is_true:
        return Found(phase=Phase.SUCCEEDED, since=completed.since, exit_code=int(ExitCode.DONE))
    if not failed.is_true:
        return None
    code, why = _failure(seen, ledger_code)
    if stop_of(seen.workload, seen.jobset) == CANCELLED:
        return Found(phase=Phase.CANCELLED, reason="cancelled", since=failed.since, exit_code=code)
    return Found(phase=Phase.FAILED, reason=why or failed.message or failed.reason or "failed", since=failed.since, exit_code=code)


def _failure(seen: Seen, ledger_code: int | None) -> tuple[int, str]:
    """(code, reason): of the pods that ended badly, else of the Job that failed, else of the ledger; a job that says nothing crashed."""
    ended = [pod for pod in seen.pods if pod.exit_code not in (None, 0)]
    if ended:
        code = exit_code_of(pod.exit_code for pod in ended if pod.exit_code is not None)
        return code, "; ".join(told(pod) for pod in ended if pod.exit_code is not None and _same(pod.exit_code, code))
    for job in seen.jobs:
        failed = condition(job, "Failed")
        if match := _EXIT_CODE.search(failed.message):
            return exit_code_of([int(match[1])]), failed.message
    if ledger_code is not None:
        return ledger_code, f"the ledger says that its newest attempt ended with {ledger_code}"
    return int(ExitCode.RETRY), "a pod died without a word (deleted, killed, or its node was lost)"


def _same(pod_code: int, code: int) -> bool:
    return exit_code_of([pod_code]) == code


def _deleted(seen: Seen) -> Found | None:
    at = seen.jobset["metadata"].get("deletionTimestamp")
    return Found(phase=Phase.STOPPING, reason="deleted; its pods are still ending", since=at) if at else None


def stop_of(workload: Obj | None, jobset: Obj) -> str | None:
    """Why we took its place away; None where we did not, or it was let go again. Without Kueue the JobSet itself is suspended."""
    holder = jobset if workload is None else workload
    spec = holder.get("spec") or {}
    if spec.get("active", True) and not (workload is None and spec.get("suspend", False)):
        return None
    found: str | None = (holder["metadata"].get("annotations") or {}).get(STOPPED)
    return found


def has_no_workload(seen: Seen) -> bool:
    """It waits for Kueue, which has made nothing of it: not yet, or it never heard of a JobSet from a time when no API server answered."""
    is_over = condition(seen.jobset, "Completed").is_true or condition(seen.jobset, "Failed").is_true
    is_leaving = seen.jobset["metadata"].get("deletionTimestamp")
    return seen.is_queued and seen.workload is None and not is_over and not is_leaving


def _stopped_by_us(seen: Seen) -> Found | None:
    why = stop_of(seen.workload, seen.jobset)
    if why is None:
        return None
    since = condition(seen.workload, "Evicted").since
    holder = seen.workload or seen.jobset
    said = (holder["metadata"].get("annotations") or {}).get(WHY_STOPPED) or why
    if still := _still_ending(seen):
        return Found(phase=Phase.STOPPING, reason=f"{said}; {still}", since=since)
    if why == PAUSED:
        return Found(phase=Phase.PAUSED, reason=said, since=since)
    if why == GIVEN_UP:
        return Found(phase=Phase.FAILED, reason=said, since=since, exit_code=int(ExitCode.BAD_CONFIG))
    return Found(phase=Phase.CANCELLED, reason=said, since=since, exit_code=int(ExitCode.STOPPED))


def _still_ending(seen: Seen) -> str:
    """What of a job whose place was taken away is still there; "" once nothing is, and nothing more can start.

    A suspended JobSet alone says little: Kueue may be just about to let it go, until it has seen the order and given the place back.
    """
    if there := [pod for pod in seen.pods if not pod.has_ended]:
        return f"{_pods(there)} still ending"
    if seen.workload and not condition(seen.workload, "Evicted").is_true:
        return "Kueue has not seen the order yet"
    if condition(seen.workload, "QuotaReserved").is_true:
        return "Kueue has not taken its place back yet"
    if not (seen.jobset.get("spec") or {}).get("suspend", False):
        return "Kueue has not suspended it yet"
    made = (seen.jobset.get("status") or {}).get("replicatedJobsStatus") or ()
    return "its Job has not been suspended yet" if any(not job.get("suspended") for job in made) else ""


def _deactivated(seen: Seen) -> Found | None:
    """Made inactive by Kueue or by a person."""
    if seen.workload is None or (seen.workload.get("spec") or {}).get("active", True):
        return None
    evicted = condition(seen.workload, "Evicted")
    if still := _still_ending(seen):
        return Found(phase=Phase.STOPPING, reason=f"{evicted.message or 'made inactive'}; {still}", since=evicted.since)
    if _OVERTIME in evicted.reason or _OVERTIME_TOLD in evicted.message:
        return Found(
            phase=Phase.FAILED, reason=f"its time is over: {evicted.message}", since=evicted.since, exit_code=int(ExitCode.OUT_OF_TIME)
        )
    reason = f"its Workload is inactive ({evicted.message or 'somebody set spec.active to false'}); unpause it to go on"
    return Found(phase=Phase.PAUSED, reason=reason, since=evicted.since)


def _waiting(seen: Seen) -> Found | None:
    """Not admitted (yet, or any more)."""
    if not seen.is_queued:
        is_suspended = (seen.jobset.get("spec") or {}).get("suspend", False)
        return Found(phase=Phase.PAUSED, reason="the JobSet is suspended") if is_suspended else None
    if seen.workload is None:
        return Found(phase=Phase.QUEUED, reason="Kueue has not made a Workload of it yet; does it run, and does the priority class exist?")
    if condition(seen.workload, "Admitted").is_true:
        return None
    evicted, reserved = condition(seen.workload, "Evicted"), condition(seen.workload, "QuotaReserved")
    if reserved.is_true:
        waits = _admission_checks(seen.workload)
        return Found(phase=Phase.QUEUED, reason=f"has its quota, and waits for {waits}", since=reserved.since)
    saving = [pod for pod in seen.pods if pod.is_alive]
    still = f"; {_pods(saving)} still saving" if saving else ""
    if evicted.is_true and evicted.reason == "Preempted":
        return Found(phase=Phase.PREEMPTED, reason=f"{evicted.message}{still}", since=evicted.since)
    if evicted.is_true:
        pending = f"; {reserved.message}" if reserved.message else ""
        return Found(phase=Phase.QUEUED, reason=f"evicted ({evicted.reason}): {evicted.message}{pending}{still}", since=evicted.since)
    waits = reserved.message or "waits for Kueue to look at it"
    return Found(phase=Phase.QUEUED, reason=waits, since=reserved.since)


def _admission_checks(workload: Obj) -> str:
    checks = (workload.get("status") or {}).get("admissionChecks") or ()
    names = [check.get("name", "") for check in checks if check.get("state") != "Ready"]
    return f"the admission checks {', '.join(names)}" if names else "Kueue's admission"


def _admitted(seen: Seen, ledger: LedgerView | None) -> Found:
    since = condition(seen.workload, "Admitted").since
    restarts = int((seen.jobset.get("status") or {}).get("restarts") or 0)
    running = [pod for pod in seen.pods if pod.is_running]
    leaving = [pod for pod in seen.pods if pod.is_leaving]
    failed = [pod for pod in seen.pods if pod.exit_code not in (None, 0)]
    if failed or (leaving and not running):
        told_of = "; ".join(told(pod) for pod in failed) or f"{_pods(leaving)} still ending"
        return Found(phase=Phase.RESTARTING, reason=f"{told_of}; the gang is started again")
    if not seen.pods:
        if restarts:
            return Found(phase=Phase.RESTARTING, reason=f"restart {restarts}: its pods are made anew", since=since)
        return Found(phase=Phase.ADMITTED, reason="no pods yet", since=since)
    if trouble := starting_trouble(seen.pods):
        return Found(phase=Phase.STARTING, reason=trouble, since=since)
    done = [pod for pod in seen.pods if pod.exit_code == 0]
    if len(running) + len(done) < seen.nodes:
        return Found(phase=Phase.STARTING, reason=f"{len(running)} of {seen.nodes} pods run", since=since)
    return replace(_by_ledger(ledger), since=max((pod.started for pod in running if pod.started), default=since))


def _by_ledger(ledger: LedgerView | None) -> Found:
    if ledger is None:
        return Found(phase=Phase.RUNNING)
    if ledger.restarting:
        return Found(phase=Phase.RESTARTING, reason=f"attempt {ledger.newest} ended; the next one is about to start in place")
    if ledger.newest is None:
        return Found(phase=Phase.STARTING, reason="no attempt claimed yet")
    if not ledger.all_joined:
        return Found(phase=Phase.STARTING, reason=f"attempt {ledger.newest} waits for its nodes to join")
    return Found(phase=Phase.RUNNING)


def _pods(pods: Sequence[PodView]) -> str:
    return "1 pod is" if len(pods) == 1 else f"{len(pods)} pods are"
