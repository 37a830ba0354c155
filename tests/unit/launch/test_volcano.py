"""The `kubernetes` launcher: the same LaunchSpec as a Volcano Job, TorchX's traps taken out."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagecoach.constants import Phase
from stagecoach.contract.launch import SecretRef, Topology
from stagecoach.errors import ConfigError
from stagecoach.launch.kube.podstate import PodView
from stagecoach.launch.local_phase import LedgerView
from stagecoach.launch.volcano.launcher import VolcanoLauncher
from stagecoach.launch.volcano.phases import Seen, job_state
from stagecoach.site import Pods, Site
from stagecoach.testing.builders import launch_spec

GOLDEN = Path(__file__).parent / "golden" / "volcano-stage.yaml"
SPEC = launch_spec(
    job_uri="s3://bucket/root/runs/toy/stages/00-pretrain", nodes=2, image="registry/training:1", queue="default", priority="high",
    secrets=(SecretRef(variable="KEY", secret="store", key="key"),), excluded_nodes=("gpu-7",),
)  # fmt: skip


def rendered() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(VolcanoLauncher(site=Site(pods=Pods(tolerations=["gpu:NoSchedule"]))).dry_run(SPEC))
    return job


def test_the_whole_object_is_the_reviewed_one() -> None:
    job = rendered()
    for task in job["spec"]["tasks"]:
        task["template"]["metadata"]["labels"].pop("torchx.pytorch.org/version")
    if os.environ.get("STAGECOACH_WRITE_GOLDEN"):
        GOLDEN.write_text(yaml.safe_dump(job, sort_keys=False, width=140))
    assert job == yaml.safe_load(GOLDEN.read_text())


def test_torchxs_traps_are_taken_out() -> None:
    job = rendered()
    assert job["metadata"]["name"] == SPEC.name  # TorchX's is random, so that a create is never an attach
    assert [task["name"] for task in job["spec"]["tasks"]] == ["node-0", "node-1"]
    assert not any("maxRetry" in task or "policies" in task for task in job["spec"]["tasks"])  # of single pods of a gang
    containers = [task["template"]["spec"]["containers"][0] for task in job["spec"]["tasks"]]
    assert [container["env"][0] for container in containers] == [{"name": "TORCHX_REPLICA_ID", "value": str(index)} for index in (0, 1)]
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers)
    assert {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "key"}}} in containers[0]["env"]


def test_exit_codes_decide_who_runs_again() -> None:
    policies = rendered()["spec"]["policies"]
    assert {policy["exitCode"] for policy in policies if policy["action"] == "TerminateJob"} == set(range(40, 50))
    assert policies[-1] == {"events": ["PodEvicted", "PodFailed"], "action": "RestartJob"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"queue": None}, "no queue"),
        ({"image": None}, "no image"),
        ({"topology": Topology(mode="unconstrained")}, "launch.topology is Kueue's"),
        ({"name": "a" * 60}, "pods' names"),
    ],
)
def test_what_volcano_could_not_run_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        VolcanoLauncher(site=Site()).dry_run(replace(SPEC, **changes))


running = PodView(name="a", phase="Running", node="n0")
other = replace(running, name="b", index=1)


def seen(phase: str | None, *pods: PodView, group: dict[str, Any] | None = None, **notes: str) -> Seen:
    annotations = {f"stagecoach.dev/{name.replace('_', '-')}": value for name, value in notes.items()}
    status = {"state": {"phase": phase, "lastTransitionTime": "2026-11-21T11:00:00Z"}, "retryCount": 3} if phase else {}
    job = {"metadata": {"name": "toy", "annotations": annotations}, "spec": {"tasks": [{}, {}]}, "status": status}
    return Seen(job=job, pods=pods, group=group)


UNSCHEDULABLE = {"status": {"conditions": [{"type": "Unschedulable", "status": "True", "message": "2/0 tasks in gang unschedulable"}]}}


@pytest.mark.parametrize(
    ("what", "phase", "code", "told"),
    [
        (seen(None), Phase.QUEUED, None, "does its scheduler run?"),
        (seen("Pending", group=UNSCHEDULABLE), Phase.QUEUED, None, "2/0 tasks in gang"),
        (seen("Running", running), Phase.STARTING, None, "1 of 2 pods run"),
        (seen("Running", running, replace(other, phase="Pending", waiting="ErrImagePull")), Phase.STARTING, None, "ErrImagePull"),
        (seen("Running", running, other), Phase.RUNNING, None, ""),
        (seen("Restarting"), Phase.RESTARTING, None, "started again"),
        (seen("Aborting"), Phase.STOPPING, None, "Aborting"),
        (seen("Aborted", stopped="cancelled"), Phase.CANCELLED, 143, "cancelled"),
        (seen("Aborted", stopped="paused", stopped_because="lunch"), Phase.PAUSED, None, "lunch"),
        (seen("Completed"), Phase.SUCCEEDED, 0, ""),
        (seen("Terminated", replace(running, phase="Failed", exit_code=42)), Phase.FAILED, 42, "ended with 42"),
        (seen("Failed"), Phase.FAILED, 75, "died without a word"),
    ],
)
def test_what_volcano_says_is_told_in_the_contracts_words(what: Seen, phase: Phase, code: int | None, told: str) -> None:
    state = job_state(what)
    assert (state.phase, state.exit_code) == (phase, code)
    assert told in state.reason


def test_pods_that_run_are_a_job_that_runs_once_the_ledger_says_so() -> None:
    what = seen("Running", running, other)
    assert job_state(what, LedgerView()).phase == Phase.STARTING
    assert job_state(what, LedgerView(newest=4, attempts=4)).reason == "attempt 4 waits for its nodes to join"
    state = job_state(what, LedgerView(newest=5, attempts=5, all_joined=True))
    assert (state.phase, state.attempt, state.restarts) == (Phase.RUNNING, 5, 4)
