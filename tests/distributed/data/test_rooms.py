"""Batches of real worker processes in shared memory that is used again: none is overwritten while it is held, and nothing stays behind."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from stagecoach.recipes.tiny import mm1_tiny
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.loader import LoadedStep, StepLoader, WorkSettings
from stagecoach_workloads.testing.collated import row_hashes

SHARED_MEMORY = Path("/dev/shm")


def left_behind(named: Iterable[str]) -> set[str]:
    """Names in shared memory beside ``named``, but those of processes that run beside this one: tests of other workers have loaders too."""
    found = {name: inode_of(name) for name in set(os.listdir(SHARED_MEMORY)) - set(named)}
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    elsewhere = {inode for process in psutil.process_iter() if process.pid not in ours for inode in mapped_by(process.pid)}
    return {name for name, inode in found.items() if inode not in elsewhere and inode_of(name) == inode is not None}


def inode_of(name: str) -> int | None:
    try:
        return (SHARED_MEMORY / name).stat().st_ino
    except FileNotFoundError:
        return None


def mapped_by(pid: int) -> set[int]:
    """Inodes of shared memory that a process has mapped; a semaphore's mapping bears another name than its file."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in maps.splitlines() if f"{SHARED_MEMORY}/" in line}


def loader(corpus: str, settings: WorkSettings, stop: int) -> StepLoader:
    stage = mm1_tiny().stages[0]
    return StepLoader(open_data(stage, data=corpus), stop=stop, settings=settings)


def hashes(steps: list[LoadedStep]) -> list[list[str]]:
    return [[row for batch in step.batches for row in row_hashes(batch)] for step in steps]


def test_many_more_batches_than_there_are_rooms_can_be_held(corpus: str) -> None:
    alone = hashes(list(loader(corpus, WorkSettings(workers=0), 24)))
    held = []
    for step in loader(corpus, WorkSettings(workers=2, rooms=1), 24):
        held.append(step)
        if len(held) == 12:
            assert hashes(held) == alone[:12]
    assert hashes(held) == alone


def test_steps_that_are_let_go_use_their_memory_again(corpus: str) -> None:
    rooms, places = 32, []
    for step in loader(corpus, WorkSettings(workers=1, rooms=rooms), 24):
        places += [batch.tokens_BT.data_ptr() for batch in step.batches]
        assert 3 * len(step.batches) + 4 < rooms  # this step, the one before, the one that is coming: so that none was made elsewhere
    assert len(set(places)) <= rooms < len(places)


def test_a_killed_worker_is_an_error_and_leaves_nothing_behind(corpus: str) -> None:
    named, below = set(os.listdir(SHARED_MEMORY)), set(psutil.Process().children(recursive=True))
    steps = iter(loader(corpus, WorkSettings(workers=2), 1000))
    held = next(steps)
    before = hashes([held])
    workers = [child for child in set(psutil.Process().children(recursive=True)) - below if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exited unexpectedly|killed"):
        list(steps)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert hashes([held]) == before
    assert left_behind(named) == set()
