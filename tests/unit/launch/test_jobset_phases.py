"""Every state of a JobSet, its Workload and its pods, in the contract's words. A preemption is never a failure."""

from dataclasses import replace
from typing import Any

import pytest

from stagecoach.constants import Phase
from stagecoach.launch.jobset.phases import Seen, job_state
from stagecoach.launch.kube.podstate import PodView, exit_code_of, read_pod
from stagecoach.launch.local_phase import LedgerView

JOINED = LedgerView(newest=2, attempts=2, all_joined=True)


def jobset(*conditions: dict[str, Any], restarts: int = 0, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "toy", "uid": "u", "creationTimestamp": "2026-11-21T10:00:00Z"},
        "spec": spec,
        "status": {"conditions": list(conditions), "restarts": restarts},
    }


def with_job(jobset: dict[str, Any], *, suspended: int) -> dict[str, Any]:
    jobset["status"]["replicatedJobsStatus"] = [{"name": "node", "suspended": suspended}]
    return jobset


def workload(*conditions: dict[str, Any], active: bool = True, **notes: str) -> dict[str, Any]:
    annotations = {f"stagecoach.dev/{name.replace('_', '-')}": value for name, value in notes.items()}
    return {"metadata": {"name": "w", "annotations": annotations}, "spec": {"active": active}, "status": {"conditions": list(conditions)}}


def condition(kind: str, status: bool = True, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": str(status), "reason": reason, "message": message, "lastTransitionTime": "2026-11-21T11:00:00Z"}


RESERVED, ADMITTED, DEACTIVATED = condition("QuotaReserved"), condition("Admitted"), condition("Evicted", reason="Deactivated")
PREEMPTED = condition("Evicted", reason="Preempted", message="Preempted to accommodate a workload (UID: 1) due to prioritization")
NO_QUOTA = condition("QuotaReserved", False, "Pending", "couldn't assign flavors: insufficient unused quota for cpu")
running = PodView(name="toy-0", phase="Running", node="n0", started="2026-11-21T11:01:00Z")
other = replace(running, name="toy-1", index=1, node="n1", started="2026-11-21T11:02:00Z")


def state(seen: Seen, ledger: LedgerView | None = None, **more: Any) -> tuple[Phase, str, int | None]:
    found = job_state(seen, ledger, **more)
    return found.phase, found.reason, found.exit_code


def admitted(*pods: PodView, restarts: int = 0) -> Seen:
    return Seen(jobset=jobset(restarts=restarts), workload=workload(RESERVED, ADMITTED), pods=pods, nodes=2)


@pytest.mark.parametrize(
    ("seen", "phase", "told"),
    [
        (Seen(jobset=jobset()), Phase.QUEUED, "Kueue has not made a Workload"),
        (Seen(jobset=jobset(), workload=workload()), Phase.QUEUED, "waits for Kueue"),
        (Seen(jobset=jobset(), workload=workload(NO_QUOTA)), Phase.QUEUED, "insufficient unused quota"),
        (Seen(jobset=jobset(), workload=workload(RESERVED)), Phase.QUEUED, "has its quota"),
        (admitted(), Phase.ADMITTED, "no pods yet"),
        (admitted(running), Phase.STARTING, "1 of 2 pods run"),
        (admitted(running, other), Phase.RUNNING, ""),
        (admitted(running, replace(other, phase="Pending", node=None, unplaced="0/2 nodes are available")), Phase.STARTING, "0/2 nodes"),
        (
            admitted(running, replace(other, phase="Pending", waiting="ImagePullBackOff", waiting_says="no such image")),
            Phase.STARTING,
            "ImagePullBackOff: no such image",
        ),
        (admitted(replace(running, phase="Pending", waiting="ContainerCreating")), Phase.STARTING, "0 of 2 pods run"),
        (admitted(running, replace(other, phase="Failed", exit_code=75)), Phase.RESTARTING, "node 1 on n1 ended with 75"),
        (admitted(replace(running, is_leaving=True), replace(other, is_leaving=True)), Phase.RESTARTING, "2 pods are still ending"),
        (admitted(restarts=1), Phase.RESTARTING, "restart 1"),
        (Seen(jobset=jobset(), workload=workload(PREEMPTED, NO_QUOTA)), Phase.PREEMPTED, "due to prioritization"),
        (Seen(jobset=jobset(), workload=workload(PREEMPTED), pods=(running, other)), Phase.PREEMPTED, "2 pods are still saving"),
        (
            Seen(jobset=jobset(), workload=workload(condition("Evicted", reason="PodsReadyTimeout", message="too slow"), NO_QUOTA)),
            Phase.QUEUED,
            "evicted (PodsReadyTimeout): too slow; couldn't",
        ),
        (
            Seen(jobset=jobset(suspend=True), workload=workload(DEACTIVATED, active=False, stopped="paused", stopped_because="lunch")),
            Phase.PAUSED,
            "lunch",
        ),
        (
            Seen(jobset=jobset(suspend=True), workload=workload(DEACTIVATED, active=False, stopped="cancelled")),
            Phase.CANCELLED,
            "cancelled",
        ),
        (
            Seen(jobset=jobset(suspend=True), workload=workload(DEACTIVATED, active=False, stopped="cancelled"), pods=(running,)),
            Phase.STOPPING,
            "1 pod is still",
        ),
        (
            Seen(jobset=jobset(suspend=False), workload=workload(DEACTIVATED, active=False, stopped="cancelled")),
            Phase.STOPPING,
            "not suspended it yet",
        ),
        (
            Seen(
                jobset=jobset(suspend=True),
                workload=workload(DEACTIVATED, active=False, stopped="cancelled"),
                pods=(replace(running, phase="Pending", node=None),),
            ),
            Phase.STOPPING,
            "1 pod is still",
        ),
        (Seen(jobset=jobset(suspend=True), workload=workload(active=False, stopped="paused")), Phase.STOPPING, "not seen the order yet"),
        (
            Seen(jobset=jobset(suspend=True), workload=workload(RESERVED, DEACTIVATED, active=False, stopped="cancelled")),
            Phase.STOPPING,
            "not taken its place back yet",
        ),
        (
            Seen(jobset=with_job(jobset(suspend=True), suspended=0), workload=workload(DEACTIVATED, active=False, stopped="paused")),
            Phase.STOPPING,
            "Job has not been suspended yet",
        ),
        (
            Seen(jobset=with_job(jobset(suspend=True), suspended=1), workload=workload(DEACTIVATED, active=False, stopped="paused")),
            Phase.PAUSED,
            "paused",
        ),
        (
            Seen(jobset=jobset(suspend=True), workload=workload(DEACTIVATED, active=False)),
            Phase.PAUSED,
            "somebody set spec.active to false",
        ),
        (Seen(jobset=jobset(), workload=workload(ADMITTED, stopped="paused"), pods=(running,)), Phase.RUNNING, ""),
        (Seen(jobset=jobset(suspend=True), is_queued=False), Phase.PAUSED, "suspended"),
        (Seen(jobset=jobset(suspend=False), is_queued=False, pods=(running,)), Phase.RUNNING, ""),
        (Seen(jobset=jobset(condition("Completed")), workload=workload(RESERVED, ADMITTED)), Phase.SUCCEEDED, ""),
    ],
)
def test_what_is_seen_is_told_with_its_reason(seen: Seen, phase: Phase, told: str) -> None:
    found, reason, code = state(seen)
    assert found == phase
    assert told in reason
    assert code == {Phase.SUCCEEDED: 0, Phase.CANCELLED: 143}.get(phase)


def test_a_job_that_was_given_up_has_failed_with_40() -> None:
    phase, reason, code = state(
        Seen(jobset=jobset(suspend=True), workload=workload(DEACTIVATED, active=False, stopped="given-up", stopped_because="no image"))
    )
    assert (phase, reason, code) == (Phase.FAILED, "no image", 40)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("DeactivatedDueToMaximumExecutionTimeExceeded", "deactivated"),
        ("Deactivated", "The workload is deactivated due to exceeding the maximum execution time"),
    ],
)
def test_time_that_is_over_is_a_failure_with_45(reason: str, message: str) -> None:
    evicted = condition("Evicted", reason=reason, message=message)
    phase, reason, code = state(Seen(jobset=jobset(suspend=True), workload=workload(evicted, active=False)))
    assert (phase, code) == (Phase.FAILED, 45)
    assert "its time is over" in reason


@pytest.mark.parametrize(
    ("pods", "jobs", "ledger_code", "code", "told"),
    [
        (
            (replace(running, phase="Failed", exit_code=42), replace(other, phase="Failed", exit_code=75)),
            (),
            None,
            42,
            "on n0 ended with 42",
        ),
        (
            (replace(running, phase="Failed", exit_code=137, ended_because="OOMKilled"),),
            (),
            None,
            75,
            "died without a word (exit code 137, OOMKilled)",
        ),
        ((replace(running, phase="Failed", exit_code=1),), (), None, 75, "ended with 1"),
        ((), ({"status": {"conditions": [condition("Failed", message="pod x failed with exit code 41 matching")]}},), 75, 41, "code 41"),
        ((), (), 43, 43, "the ledger says"),
        ((), (), None, 75, "died without a word"),
    ],
)
def test_a_failure_has_the_code_of_its_cause(
    pods: tuple[PodView, ...], jobs: tuple[dict[str, Any], ...], ledger_code: int | None, code: int, told: str
) -> None:
    seen = Seen(jobset=jobset(condition("Failed")), workload=workload(RESERVED, ADMITTED), pods=pods, jobs=jobs)
    phase, reason, found = state(seen, ledger_code=ledger_code)
    assert (phase, found) == (Phase.FAILED, code)
    assert told in reason


@pytest.mark.parametrize(
    ("ledger", "phase", "told"),
    [
        (JOINED, Phase.RUNNING, ""),
        (LedgerView(), Phase.STARTING, "no attempt claimed yet"),
        (LedgerView(newest=2, attempts=1), Phase.STARTING, "attempt 2 waits for its nodes"),
        (replace(JOINED, restarting=True), Phase.RESTARTING, "attempt 2 ended"),
    ],
)
def test_pods_that_run_are_a_job_that_runs_once_the_ledger_says_so(ledger: LedgerView, phase: Phase, told: str) -> None:
    found, reason, _ = state(admitted(running, other), ledger)
    assert found == phase
    assert told in reason


def test_restarts_count_attempts_too_since_a_preemption_makes_no_restart() -> None:
    seen = admitted(running, other, restarts=1)
    assert job_state(seen, None).restarts == 1
    assert job_state(seen, replace(JOINED, attempts=5)).restarts == 4
    assert job_state(seen, JOINED).attempt == 2
    assert job_state(seen, None).since == "2026-11-21T11:02:00Z"


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 143], 143), ([143, 75], 75), ([75, 44], 44), ([1], 75), ([137, 143], 75), ([0, 139], 75)]
)
def test_a_jobs_code_is_the_weightiest_of_its_pods(codes: list[int], code: int) -> None:
    assert exit_code_of(codes) == code


def test_a_pod_is_read_from_the_apis_object() -> None:
    pod = {
        "metadata": {
            "name": "toy-0-x",
            "uid": "p",
            "annotations": {"batch.kubernetes.io/job-completion-index": "3"},
            "deletionTimestamp": "2026-11-21T11:00:00Z",
        },
        "spec": {"nodeName": "gpu-7"},
        "status": {
            "phase": "Failed",
            "podIP": "10.0.0.7",
            "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}],
        },
    }
    view = read_pod(pod)
    assert (view.index, view.node, view.address, view.exit_code, view.ended_because) == (3, "gpu-7", "10.0.0.7", 137, "OOMKilled")
    assert view.is_leaving
    assert not view.is_alive
    assert read_pod({"metadata": {"name": "x"}}).phase == "Pending"
    assert read_pod({"metadata": {"name": "x"}, "status": {"phase": "Failed", "reason": "Evicted"}}).exit_code == 137
