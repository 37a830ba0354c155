"""The fake that other rooms' tests use keeps the promises of real launchers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import LaunchSpec, RunHandle
from stagecoach.testing.builders import launch_spec
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher
from stagecoach.testing.launcher_contract import LauncherContract


class FakeWorld:
    def __init__(self) -> None:
        self.cluster = FakeCluster()

    def launcher(self) -> FakeLauncher:
        return FakeLauncher(self.cluster)

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec:
        return replace(launch_spec(job_uri=f"memory://root/runs/{run_id}/stages/00-pretrain"), **changes)

    def finish(self, handle: RunHandle, code: int) -> None:
        self.cluster.finish(handle.name, code)

    def lose(self, handle: RunHandle) -> None:
        self.cluster.lose(handle.name)

    def starts(self, handle: RunHandle) -> Sequence[int]:
        return [self.cluster.jobs[handle.name].starts]

    def num_processes(self, handle: RunHandle) -> int:
        job = self.cluster.jobs.get(handle.name)
        return 1 if job and not job.state.phase.is_terminal and job.state.phase != Phase.PAUSED else 0


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


class TestFakeLauncher(LauncherContract):
    pass


def test_a_preemption_is_a_phase_and_the_job_goes_on(world: FakeWorld) -> None:
    handle = world.launcher().submit(world.spec())
    world.cluster.preempt(handle.name)
    assert world.launcher().describe(handle).phase == Phase.PREEMPTED
    world.cluster.resume(handle.name)
    state = world.launcher().describe(handle)
    assert (state.phase, state.attempt, state.restarts) == (Phase.RUNNING, 2, 1)


@pytest.mark.parametrize(("point", "jobs"), [("before_create", 0), ("after_create", 1)])
def test_a_crash_point_leaves_nothing_or_the_job(world: FakeWorld, point: str, jobs: int) -> None:
    with pytest.raises(Crashed):
        FakeLauncher(world.cluster, crash_at=point).submit(world.spec())
    assert len(world.launcher().list()) == jobs
    assert world.starts(world.launcher().submit(world.spec())) == [1]
