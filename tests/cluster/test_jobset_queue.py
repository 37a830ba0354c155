"""Queued, admitted, preempted, paused, cancelled: real Kueue decides, `describe` says it in the contract's words."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from stagecoach.constants import Phase
from stagecoach.errors import ConfigError
from stagecoach.launch.jobset.phases import job_state
from stagecoach.launch.jobset.reader import JobsetApi
from stagecoach.launch.jobset.scheduler import JobsetScheduler
from stagecoach.testing.cluster_world import HIGH, LOW, QUEUE, ClusterWorld


@pytest.fixture
def small(fake_nodes: int) -> Iterator[ClusterWorld]:
    """Quota for one job of two nodes."""
    there = ClusterWorld(cpus=2, retries=2)
    yield there
    there.close()


def test_a_job_waits_for_quota_says_why_and_preempts_by_priority(small: ClusterWorld) -> None:
    launcher = small.launcher()
    low = launcher.submit(small.spec("low", name="low-pretrain-0-s1", priority=LOW))
    small.wait_running(low)
    time.sleep(1.1)  # of two that are equally important Kueue takes the older one, by whole seconds; of equals any
    waiting = launcher.submit(small.spec("other", name="other-pretrain-0-s1", priority=LOW))
    queued = small.wait_phase(waiting, Phase.QUEUED)
    print("queued:", queued.reason)
    high = launcher.submit(small.spec("high", name="high-pretrain-0-s1", priority=HIGH))
    preempted = small.wait_phase(low, Phase.PREEMPTED)
    print("preempted:", preempted.reason)
    assert "reempted" in preempted.reason
    small.wait_running(high)
    assert small.jobset(low).get("status", {}).get("restarts", 0) == 0
    small.end_pods(high, 0)
    small.wait_phase(high, Phase.SUCCEEDED)
    small.wait_running(low)
    assert "insufficient" in small.wait_phase(waiting, Phase.QUEUED).reason
    small.end_pods(low, 0)
    small.wait_phase(low, Phase.SUCCEEDED)
    small.wait_running(waiting)


def test_a_paused_job_gives_its_place_back_and_goes_on_when_it_is_let_go(small: ClusterWorld) -> None:
    launcher = small.launcher()
    first = launcher.submit(small.spec("one", name="one-pretrain-0-s1"))
    small.wait_running(first)
    launcher.pause(first, because="the author is at lunch")
    assert small.wait_phase(first, Phase.PAUSED).reason == "the author is at lunch"
    second = launcher.submit(small.spec("two", name="two-pretrain-0-s1"))
    small.wait_running(second)
    small.end_pods(second, 0)
    small.wait_phase(second, Phase.SUCCEEDED)
    launcher.unpause(first)
    small.wait_running(first)
    assert launcher.attach(first.name) == first
    launcher.cancel(first)
    small.wait_phase(first, Phase.CANCELLED)
    with pytest.raises(ConfigError, match="was cancelled, which is for good"):
        launcher.unpause(first)


def test_a_queued_job_can_be_cancelled_and_never_starts(small: ClusterWorld) -> None:
    launcher = small.launcher()
    small.wait_running(launcher.submit(small.spec("one", name="one-pretrain-0-s1")))
    waiting = launcher.submit(small.spec("two", name="two-pretrain-0-s1"))
    small.wait_phase(waiting, Phase.QUEUED)
    launcher.cancel(waiting)
    state = small.wait_phase(waiting, Phase.CANCELLED)
    assert state.exit_code == 143
    assert small.pods(waiting) == []


def test_a_job_stopped_while_kueue_starts_it_is_told_as_stopped_once_nothing_of_it_runs_or_will(world: ClusterWorld) -> None:
    def stop_at_once(number: int) -> int:
        launcher = world.launcher()
        handle = launcher.submit(world.spec(f"run{number}", name=f"run{number}-pretrain-0-s1"))
        launcher.cancel(handle)
        return world.num_processes(handle)

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(stop_at_once, range(20))) == [0] * 20


def test_a_crash_is_restarted_and_counted_until_the_retries_are_used_up(small: ClusterWorld) -> None:
    handle = small.launcher().submit(small.spec())
    for restart in (1, 2):
        small.end_pods(handle, 75)
        small.wait_restarts(handle, restart)
    small.end_pods(handle, 75)
    state = small.wait_phase(handle, Phase.FAILED)
    assert (state.exit_code, state.restarts) == (75, 2)


def test_a_fatal_code_ends_the_job_at_once(small: ClusterWorld) -> None:
    handle = small.launcher().submit(small.spec())
    small.end_pods(handle, 42)
    state = small.wait_phase(handle, Phase.FAILED)
    assert (state.exit_code, state.restarts) == (42, 0)
    assert "ended with 42" in state.reason


def test_a_job_whose_time_is_over_is_ended_by_kueue_and_has_failed_with_45(small: ClusterWorld) -> None:
    from torchx.specs import AppDef, Resource, Role

    role = Role(name="long", image="localhost/nothing:1", entrypoint="sleep", num_replicas=2, resource=Resource(cpu=1, gpu=0, memMB=64))
    cfg = {**small.site().pod_settings(), "queue": QUEUE, "max_execution_time": 3}
    app_id = JobsetScheduler("tests", kube=small.kube).submit(AppDef(name="long", roles=[role]), cfg)
    name = app_id.partition(":")[2]
    api = JobsetApi(small.kube, small.namespace)

    def has_failed() -> bool:
        seen = api.see(name)
        return seen is not None and job_state(seen).phase == Phase.FAILED

    small.wait(has_failed, "Kueue to end it")
    seen = api.see(name)
    assert seen is not None
    state = job_state(seen)
    print("time over:", state.reason)
    assert state.exit_code == 45


@pytest.mark.parametrize(
    ("changes", "told"), [({"queue": "reserch"}, "no such LocalQueue"), ({"priority": "urgent"}, "no such WorkloadPriorityClass")]
)
def test_a_queue_or_priority_that_does_not_exist_is_refused_before_anything_is_made(
    world: ClusterWorld, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        world.launcher().submit(replace(world.spec(), **changes))
    assert world.launcher().list() == []
