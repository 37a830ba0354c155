"""Batches of real worker processes in shared memory that is used again: none is overwritten while it is held, and nothing stays behind."""

import signal

import psutil
import pytest

from stagecoach.recipes.tiny import mm1_tiny
from stagecoach.testing import shared_memory
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.loader import LoadedStep, StepLoader, WorkSettings
from stagecoach_workloads.testing.collated import row_hashes


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
    named, below = shared_memory.names(), set(psutil.Process().children(recursive=True))
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
    assert shared_memory.left_behind(named) == set()
