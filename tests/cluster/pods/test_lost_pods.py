"""Pods and nodes that go away under a stage: it is started again on what is left, from its last commit, and ends as if never touched."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stagecoach.testing import host
from stagecoach.testing.pod_world import PodWorld, StageRun, node_of, uid_of

StartStage = Callable[..., StageRun]
ELSEWHERE_S = 60.0


@pytest.fixture
def whole_cluster(faults: None, pods: PodWorld) -> Iterator[None]:
    """What a test broke is mended after it."""
    yield
    for node in ("node-0", "node-1"):
        host.cluster("start-node", node)
        pods.until(lambda node=node: pods.node_is_ready(node), f"{node} to be Ready")  # type: ignore[misc]


def finish_on(run: StageRun, pods: PodWorld, untouched: dict[str, Any], *, machines: set[str]) -> None:
    """It ends with the right weights, its last attempt ran on these machines, and no process of any attempt is left on any."""
    manifest = run.manifest()
    assert manifest["weights_digest"] == untouched["weights_digest"]
    assert {node.machine for node in run.job.nodes(run.job.attempt_numbers()[-1])} == machines
    assert len(pods.launcher().list(run_id=run.run_id)) == 1
    run.wait_nothing_left()


@pytest.mark.timeout(600)
def test_a_pod_whose_processes_are_killed_takes_its_gang_along_and_the_next_attempt_resumes(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any]
) -> None:
    run = start_stage("killed", every_steps=5)
    committed = run.wait_commit()
    victims = pods.both(run.handle().name)
    assert set(pods.processes(victims[1])) <= set(run.processes())
    host.kill(pods.processes(victims[1])[:1])
    finish_on(run, pods, untouched, machines={"node-0", "node-1"})
    first, second = run.end_of(1), run.start_of(2)
    print("killed:", first.kind, first.exit_code, first.message, "steps lost", first.steps_lost)
    assert second.resumed_from_step == first.committed_step >= committed
    assert pods.jobset(run.handle_after_end())["status"]["restarts"] == 1


@pytest.mark.timeout(600)
def test_a_drained_node_is_left_and_the_stage_resumes_on_the_other(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any]
) -> None:
    run = start_stage("drained")
    run.wait_step(1, 3)
    victims = pods.both(run.handle().name)
    left = node_of(victims[1])
    stays = ({"node-0", "node-1"} - {left}).pop()
    pods.cordon(left)
    try:
        pods.evict(victims[1])
        pods.wait_gone(run.handle().name, [uid_of(pod) for pod in victims])
        finish_on(run, pods, untouched, machines={stays})
    finally:
        pods.cordon(left, closed=False)
    first, second = run.end_of(1), run.start_of(2)
    print("drained:", first.kind, first.message, "resumed from", second.resumed_from_step)
    assert (first.kind, first.exit_code, first.steps_lost) == ("stopped", 143, 0)
    assert second.resumed_from_step == first.step


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pods", [120], indirect=True, ids=["grace 120 s"])  # the chart's: of a dead node it is not waited for
def test_a_node_that_dies_and_stays_away_is_given_up_and_the_stage_runs_elsewhere(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any], whole_cluster: None
) -> None:
    run = start_stage("crashed", every_steps=5)
    committed = run.wait_commit()
    leader, _ = pods.both(run.handle().name)
    lost = node_of(leader)
    stays = ({"node-0", "node-1"} - {lost}).pop()
    host.cluster("crash-node", lost)
    pods.until(lambda: not pods.node_is_ready(lost), f"{lost} to be NotReady")
    elsewhere_s = pods.until(lambda: run.job.attempt_start(2) is not None, "the second attempt to be claimed")
    print(f"NotReady -> the next attempt is claimed elsewhere: {elsewhere_s:.1f} s (grace {pods.grace_s} s)")
    assert elsewhere_s <= ELSEWHERE_S
    finish_on(run, pods, untouched, machines={stays})
    first, second = run.end_of(1), run.start_of(2)
    print("crashed:", first.kind, first.message, "steps lost", first.steps_lost)
    assert first.first_failed_node == lost
    assert second.resumed_from_step == first.committed_step >= committed


@pytest.mark.timeout(600)
def test_an_attempt_that_was_only_frozen_wakes_up_beside_its_successor_and_changes_nothing(
    pods: PodWorld, start_stage: StartStage, untouched: dict[str, Any], whole_cluster: None
) -> None:
    run = start_stage("frozen", every_steps=5, holds=(1, 2))
    committed = run.wait_commit()
    leader, _ = pods.both(run.handle().name)
    lost = node_of(leader)
    stays = ({"node-0", "node-1"} - {lost}).pop()
    processes = pods.processes(leader)
    host.cluster("pause", f"kubelet-{lost[-1]}")
    try:
        host.freeze(processes)
        pods.until(lambda: run.job.attempt_start(2) is not None, "the second attempt to be claimed")
        run.release(leader)  # it may train on and write, beside its successor, which is held
        host.thaw(processes)
        pods.until(lambda: not host.alive(processes), "what woke up to end")
        run.release()
        finish_on(run, pods, untouched, machines={stays})
    finally:
        host.thaw(processes)
        host.cluster("resume", f"kubelet-{lost[-1]}")
    first = run.end_of(1)
    print("frozen:", first.kind, first.written_by, first.message)
    assert first.written_by in ("successor", "controller")
    assert first.first_failed_node == lost
    assert first.committed_step >= committed
