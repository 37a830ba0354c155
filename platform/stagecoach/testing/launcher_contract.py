"""What every launcher promises (contract/launch.py), as tests: subclass `LauncherContract` and give a fixture `world`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import Launcher, LaunchSpec, NameTaken, PausingLauncher, RunHandle
from stagecoach.errors import ConfigError

NUM_CALLERS = 32  # reliability.md F60


class World(Protocol):
    """A place where jobs run, and the means to make things happen to them."""

    def launcher(self) -> Launcher:
        """A new launcher over the same place, as another process would have."""
        ...

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec: ...

    def finish(self, handle: RunHandle, code: int) -> None: ...

    def lose(self, handle: RunHandle) -> None: ...

    def starts(self, handle: RunHandle) -> Sequence[int]: ...

    def num_processes(self, handle: RunHandle) -> int: ...


def pausing(world: World) -> PausingLauncher:
    """A new launcher, where it can pause."""
    launcher = world.launcher()
    if not isinstance(launcher, PausingLauncher):
        pytest.skip(f"launcher {launcher.name!r} cannot pause: `stagecoach pause` cancels, and the next submission goes on")
    return launcher


class LauncherContract:
    """Subclass it and give a fixture `world`."""

    def test_a_submitted_job_is_found_by_its_name_by_any_launcher(self, world: World) -> None:
        spec = world.spec()
        assert world.launcher().attach(spec.name) is None
        handle = world.launcher().submit(spec)
        assert (handle.launcher, handle.name, handle.job_uri) == (world.launcher().name, spec.name, spec.job_uri)
        assert world.launcher().attach(spec.name) == handle
        state = world.launcher().describe(handle)
        assert not state.phase.is_terminal
        assert state.phase != Phase.UNKNOWN
        assert state.exit_code is None

    def test_submitting_again_attaches_and_starts_nothing(self, world: World) -> None:
        spec = world.spec()
        handle = world.launcher().submit(spec)
        assert world.launcher().submit(spec) == handle
        assert set(world.starts(handle)) == {1}

    def test_submitting_an_ended_job_again_attaches_and_starts_nothing(self, world: World) -> None:
        spec = world.spec()
        handle = world.launcher().submit(spec)
        world.finish(handle, 75)
        assert world.launcher().submit(spec) == handle
        assert world.launcher().describe(handle).phase == Phase.FAILED
        assert set(world.starts(handle)) == {1}

    def test_the_same_name_with_another_spec_is_refused_with_what_differs(self, world: World) -> None:
        spec = world.spec()
        handle = world.launcher().submit(spec)
        with pytest.raises(NameTaken) as taken:
            world.launcher().submit(replace(spec, ranks_per_node=7, environment={"TOKEN": "do-not-print"}))
        assert f"ranks_per_node: there {spec.ranks_per_node}, asked 7" in str(taken.value)
        assert "environment.TOKEN" in str(taken.value)
        assert "do-not-print" not in str(taken.value)
        assert world.launcher().attach(spec.name) == handle
        assert not world.launcher().describe(handle).phase.is_terminal

    def test_a_name_or_variable_that_cannot_be_is_refused_before_anything_exists(self, world: World) -> None:
        for wrong in (world.spec(name="Not-A-Name"), world.spec(name="x" * 64), world.spec(environment={"RANK": "0"})):
            with pytest.raises(ConfigError, match=r"launch\."):
                world.launcher().submit(wrong)
        assert world.launcher().list() == []

    def test_32_threads_that_submit_at_once_start_one_job(self, world: World) -> None:
        spec = world.spec()
        launchers = [world.launcher() for _ in range(NUM_CALLERS)]
        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            handles = set(map(repr, pool.map(lambda launcher: launcher.submit(spec), launchers)))
        assert len(handles) == 1
        assert len(world.launcher().list()) == 1
        handle = world.launcher().attach(spec.name)
        assert handle is not None
        assert set(world.starts(handle)) == {1}

    @pytest.mark.parametrize(
        ("code", "phase"),
        [(0, Phase.SUCCEEDED), (40, Phase.FAILED), (44, Phase.FAILED), (75, Phase.FAILED), (143, Phase.FAILED)],
    )
    def test_an_ended_job_tells_its_code(self, world: World, code: int, phase: Phase) -> None:
        handle = world.launcher().submit(world.spec())
        world.finish(handle, code)
        state = world.launcher().describe(handle)
        assert (state.phase, state.exit_code) == (phase, code)
        assert bool(state.reason) == (code != 0)

    def test_a_job_whose_processes_vanish_has_failed_with_75_and_says_so(self, world: World) -> None:
        handle = world.launcher().submit(world.spec())
        world.lose(handle)
        state = world.launcher().describe(handle)
        assert (state.phase, state.exit_code) == (Phase.FAILED, 75)
        assert "died without a word" in state.reason

    def test_cancel_leaves_no_process_and_may_be_called_again(self, world: World) -> None:
        handle = world.launcher().submit(world.spec())
        for _ in range(2):
            world.launcher().cancel(handle)
            assert world.num_processes(handle) == 0
            assert world.launcher().describe(handle).phase == Phase.CANCELLED
        assert world.launcher().submit(world.spec()) == handle  # an attach, not a new start
        assert world.num_processes(handle) == 0

    def test_cancelling_an_ended_job_changes_nothing(self, world: World) -> None:
        handle = world.launcher().submit(world.spec())
        world.finish(handle, 0)
        world.launcher().cancel(handle)
        assert world.launcher().describe(handle).phase == Phase.SUCCEEDED

    def test_a_paused_job_gives_its_place_back_and_is_the_same_job_when_it_goes_on(self, world: World) -> None:
        launcher = pausing(world)
        handle = launcher.submit(world.spec())
        assert set(world.starts(handle)) == {1}
        for _ in range(2):
            launcher.pause(handle, because="lunch")
            assert world.num_processes(handle) == 0
            state = world.launcher().describe(handle)
            assert (state.phase, state.reason, state.exit_code) == (Phase.PAUSED, "lunch", None)
        assert world.launcher().submit(world.spec()) == handle  # an attach: it stays paused
        assert world.launcher().describe(handle).phase == Phase.PAUSED
        for _ in range(2):
            pausing(world).unpause(handle)
            assert world.launcher().describe(handle).phase not in (Phase.PAUSED, Phase.CANCELLED, Phase.UNKNOWN)
        world.finish(handle, 0)
        assert world.launcher().describe(handle).phase == Phase.SUCCEEDED
        launcher.pause(handle)
        assert world.launcher().describe(handle).phase == Phase.SUCCEEDED

    def test_a_paused_job_can_be_cancelled_which_is_for_good(self, world: World) -> None:
        launcher = pausing(world)
        handle = launcher.submit(world.spec())
        launcher.pause(handle)
        launcher.cancel(handle)
        assert world.num_processes(handle) == 0
        assert world.launcher().describe(handle).phase == Phase.CANCELLED
        launcher.pause(handle)
        with pytest.raises(ConfigError, match="was cancelled, which is for good"):
            pausing(world).unpause(handle)
        assert world.launcher().describe(handle).phase == Phase.CANCELLED

    def test_a_deleted_job_is_forgotten_and_its_name_free(self, world: World) -> None:
        old = world.launcher().submit(world.spec())
        for _ in range(2):
            world.launcher().delete(old)
            assert world.launcher().attach(old.name) is None
            assert world.launcher().describe(old).phase == Phase.UNKNOWN
        new = world.launcher().submit(world.spec(grace_s=3))
        assert new.uid != old.uid
        world.launcher().cancel(old)
        world.launcher().delete(old)
        assert list(world.launcher().logs(old)) == []
        assert not world.launcher().describe(new).phase.is_terminal

    def test_jobs_are_listed_by_run(self, world: World) -> None:
        first = world.launcher().submit(world.spec("one", name="one-pretrain-0-s1", nodes=1))
        second = world.launcher().submit(world.spec("two", name="two-pretrain-0-s1", nodes=1))
        assert world.launcher().list() == [first, second]
        assert world.launcher().list(run_id="two") == [second]
        assert world.launcher().list(run_id="tw") == []

    def test_the_supervisors_lines_can_be_read_and_followed_to_the_end(self, world: World) -> None:
        handle = world.launcher().submit(world.spec())
        world.finish(handle, 0)
        lines = list(world.launcher().logs(handle, rank=-1, follow=True))
        assert lines
        assert all(line.rank == -1 and "is up" in line.text for line in lines)
        assert list(world.launcher().logs(handle, rank=0)) == []
