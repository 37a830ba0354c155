"""A rank's guard: it ends what carries the token when the supervisor is gone, and nothing while the supervisor lives."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.contract import tree
from stagecoach.contract.tree import SHM_LIST, TREE, sweep


class World:
    """A process that plays the supervisor, one that a rank started by exec, one of another tree, and the guard, held by its input."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, f"0123456789abcdef-{secrets.token_hex(8)}"
        folder.mkdir()
        self.supervisor = self.sleeper({})
        self.program = self.sleeper({TREE: self.token})
        self.stranger = self.sleeper({TREE: self.token + "0"})
        self.guard = self.start_guard()

    def sleeper(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "1000"], env={**os.environ, **environment})

    def start_guard(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-S", tree.__file__, self.token, str(self.folder), str(self.supervisor.pid)]
        return subprocess.Popen(command, stdin=subprocess.PIPE)

    def close(self) -> None:
        for process in (self.supervisor, self.program, self.stranger, self.guard):
            process.kill()
            process.wait()
        assert self.guard.stdin is not None
        self.guard.stdin.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "node")
    yield world
    world.close()


@pytest.mark.parametrize("rank_dies_first", [False, True])
def test_when_the_supervisor_dies_what_carries_the_token_goes_with_it(world: World, rank_dies_first: bool) -> None:
    shm = Path(f"/dev/shm/psm_{secrets.token_hex(4)}")
    shm.touch()
    (world.folder / SHM_LIST).write_text(str(shm))
    assert world.guard.stdin is not None
    if rank_dies_first:  # by a moment: the kernel tells children before anybody who watches
        world.guard.stdin.close()
    world.supervisor.kill()
    world.supervisor.wait()
    assert world.program.wait(5) == -9
    assert world.guard.wait(5) == 0
    assert not world.folder.exists()
    assert not shm.exists()
    assert world.stranger.poll() is None


def test_a_guard_that_comes_too_late_for_its_supervisor_does_its_work_at_once(world: World) -> None:
    world.guard.kill()
    world.supervisor.kill()
    world.supervisor.wait()
    late = world.start_guard()
    assert world.program.wait(5) == -9
    assert late.wait(5) == 0
    late.stdin.close()  # type: ignore[union-attr]


def test_while_the_supervisor_lives_a_guard_only_leaves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.guard.stdin is not None
    world.guard.stdin.close()
    assert world.guard.wait(tree.LINGER_S + 5) == 0
    assert world.program.poll() is None
    assert world.folder.exists()


def test_nobody_sweeps_what_does_not_carry_exactly_the_token(world: World) -> None:
    assert sweep(lambda value: value == world.token[:-1]) == 0
    assert sweep(lambda value: value == world.token) == 1
    assert world.program.wait(5) == -9
    assert world.stranger.poll() is None
