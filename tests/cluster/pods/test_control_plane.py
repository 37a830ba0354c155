"""Parts of the cluster that go away while a stage trains: it goes on, and is found as it is when they are back."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.submit import look, wait_job
from stagecoach.testing import host
from stagecoach.testing.pod_world import PodWorld, StageRun

StartStage = Callable[..., StageRun]
AWAY_S = 60.0


def undisturbed(run: StageRun, pods: PodWorld, untouched: dict[str, Any]) -> None:
    """One attempt, no restart, the right weights."""
    manifest = run.manifest()
    assert manifest["weights_digest"] == untouched["weights_digest"]
    assert run.job.attempt_numbers() == [1]
    assert len(pods.launcher().list(run_id=run.run_id)) == 1
    run.wait_nothing_left()
    assert pods.jobset(run.handle_after_end()).get("status", {}).get("restarts", 0) == 0


def queue_is_asked(pods: PodWorld) -> None:
    """Kueue decides about one more job, for which there is no room."""
    launcher, other = pods.launcher(), pods.submit_scripted("other")
    pods.until(lambda: "insufficient" in look(launcher, other).reason, "Kueue to decide again")
    launcher.cancel(other)


@pytest.mark.timeout(600)
def test_kueue_started_again_leaves_the_stage_alone(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any], faults: None
) -> None:
    run = start_stage("kueue")
    run.wait_step(1, 3)
    host.cluster("kill", "kueue")
    host.cluster("start", "kueue")
    queue_is_asked(pods)
    run.release()
    undisturbed(run, pods, untouched)


@pytest.mark.timeout(600)
def test_etcd_started_again_leaves_the_stage_alone(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any], faults: None
) -> None:
    run = start_stage("etcd")
    run.wait_step(1, 3)
    host.cluster("kill", "etcd")
    host.cluster("start", "etcd")
    queue_is_asked(pods)
    assert run.process.poll() is None, "whoever waits for the stage waits on"
    run.release()
    undisturbed(run, pods, untouched)


@pytest.mark.timeout(600)
def test_an_api_server_that_is_away_for_a_minute_is_not_missed_by_training(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any], faults: None
) -> None:
    run = start_stage("no-api")
    run.wait_step(1, 3)
    both = pods.both(run.handle().name)
    host.cluster("kill", "kube-apiserver")
    began = time.monotonic()
    run.release(*both)
    try:
        run.wait_step(1, run.steps)  # trains to its end meanwhile
        pods.until(lambda: run.job.result() is not None, "the training's result")
        while time.monotonic() - began < AWAY_S:  # the fault is that long
            time.sleep(1.0)
    finally:
        host.cluster("start", "kube-apiserver")
    assert run.process.poll() is None, "whoever waits for the stage waits on"
    next_one = pods.submit_scripted("next")  # in the seconds in which Kueue's watches come back
    undisturbed(run, pods, untouched)
    state = wait_job(pods.launcher(), JobFolder.open(next_one.job_uri), next_one, 1)
    print("submitted right after:", state, "touched:", "stagecoach.dev/touched-at" in pods.jobset(next_one)["metadata"]["annotations"])
    assert state.phase == Phase.SUCCEEDED
