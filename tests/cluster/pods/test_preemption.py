"""A stage as pods on two real nodes, preempted: SIGTERM, saved, queued, admitted again, resumed; bit for bit as if never touched."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from stagecoach.contract.job import AttemptEnd
from stagecoach.testing.pod_world import PodWorld, StageRun, uid_of

StartStage = Callable[..., StageRun]
NEW_STEP_S = 60.0  # from pods that run to the first step that is new


def preempt(pods: PodWorld, run: StageRun, *, attempt: int) -> tuple[str, float]:
    """(the preemptor, seconds until the stage's pods were gone, and no process of theirs was left)."""
    name = run.handle().name
    victims = pods.both(name)
    assert run.processes()
    began = time.monotonic()
    hog = pods.preempt()
    pods.wait_gone(name, [uid_of(pod) for pod in victims])
    took = time.monotonic() - began
    assert run.processes() == []
    pods.until(lambda: run.job.attempt_end(attempt) is not None, f"attempt {attempt} to be ended")
    pods.both(hog)
    return hog, took


def stopped(run: StageRun, attempt: int) -> AttemptEnd:
    end = run.end_of(attempt)
    assert (end.kind, end.exit_code, end.steps_lost, end.written_by) == ("stopped", 143, 0, "leader")
    return end


@pytest.mark.timeout(600)
def test_preempted_in_mid_training_it_ends_with_the_weights_of_an_untouched_run(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any]
) -> None:
    run = start_stage("preempted", holds=(1, 2))
    run.wait_step(1, 3)
    hog, gone_s = preempt(pods, run, attempt=1)
    waiting = run.explain()
    print("explain, preempted:", waiting["sentence"])
    assert (waiting["cause"], waiting["next"], waiting["steps_lost"]) == ("stopped", "wait", 0)
    assert waiting["cluster_phase"] == "PREEMPTED"
    pods.let_go(hog)
    handle = run.handle()
    pods.both(handle.name)
    first, start = stopped(run, 1), time.monotonic()
    new_step_s = run.wait_step(2, first.step + 1)
    assert new_step_s < NEW_STEP_S
    run.release()
    manifest = run.manifest()
    second = run.start_of(2)
    assert (second.why, second.resumed_from_step) == ("preempted", first.step)
    assert first.committed_step == first.step
    assert manifest["weights_digest"] == untouched["weights_digest"]
    assert run.job.attempt_numbers() == [1, 2]
    assert {node.machine for node in run.job.nodes(1)} == {"node-0", "node-1"}
    assert pods.launcher().list(run_id="preempted") == [handle]
    assert pods.counted_restarts(handle) == 0
    pods.launcher().delete(handle)
    after = run.explain()
    print("explain, after its jobset is deleted:", json.dumps(after)[:1000])
    assert (after["cause"], after["attempts"], after["steps_lost_total"]) == ("stage_finished", 2, 0)
    print(f"preempt -> pods gone {gone_s:.1f} s; pods run -> first new step {new_step_s:.1f} s (stage {time.monotonic() - start:.0f} s); "
          f"steps lost {first.steps_lost}, duplicates 0, orphans 0")  # fmt: skip


@pytest.mark.timeout(600)
def test_preempted_again_while_it_resumes_it_still_ends_with_the_same_weights(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any]
) -> None:
    run = start_stage("twice", holds=(1, 2))
    run.wait_step(1, 3)
    hog, _ = preempt(pods, run, attempt=1)
    pods.let_go(hog)
    pods.until(lambda: run.job.attempt_start(2) is not None, "the second attempt to be claimed")
    hog, _ = preempt(pods, run, attempt=2)
    pods.let_go(hog)
    manifest = run.manifest()
    ends = [stopped(run, 1), stopped(run, 2)]
    third = run.start_of(3)
    assert (third.why, third.resumed_from_step) == ("preempted", max(end.committed_step for end in ends))
    assert run.job.attempt_numbers() == [1, 2, 3]
    assert manifest["weights_digest"] == untouched["weights_digest"]
    assert pods.counted_restarts(run.handle_after_end()) == 0


@pytest.mark.timeout(600)
def test_without_room_it_waits_and_says_for_what(pods: PodWorld, start_stage: StartStage) -> None:
    pods.both(pods.preempt())
    run = start_stage("waiting")
    handle = run.handle()
    pods.until(lambda: "insufficient" in run.explain()["cluster_reason"], "Kueue to say what is missing")
    said = run.explain()
    print("explain, no room:", said["sentence"])
    assert (said["cause"], said["next"]) == ("queued", "wait")
    assert pods.pods(handle) == []
    pods.launcher().cancel(handle)
    _, told = run.failure()
    assert "was cancelled" in told
    assert run.job.attempt_numbers() == []
