"""Two attempts at once, and ranks that wait for each other in the bucket. F31."""

import time
from collections.abc import Callable

import pytest

from stagecoach.checkpoints import State, latest, list_checkpoints
from stagecoach.contract.ledger import JobFolder
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.errors import Fenced, SaveFailed
from stagecoach_workloads.testing.checkpointing import start_attempt, whole_state

Build = Callable[..., Checkpoints]


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, whole_state(step))
    checkpoints.before_update()
    assert checkpoints.wait(120)


def test_an_old_attempt_gives_up_when_a_newer_one_was_claimed(build: Build, job: JobFolder) -> None:
    start_attempt(job, 1, 0)
    old = build(job, attempt=1)
    save(old, 1)
    start_attempt(job, 2, 1)
    old.save(2, whole_state(2))
    with pytest.raises(Fenced, match=r"attempt 2 of .* was claimed; attempt 1 writes nothing more"):
        old.wait(60)
    assert latest(job).step == 1  # type: ignore[union-attr]


def test_a_commit_that_slips_through_past_the_successors_start_is_never_read(build: Build, job: JobFolder) -> None:
    """The successor is claimed after the old attempt's last look and before its commit."""
    start_attempt(job, 1, 0)
    old = build(job, attempt=1)
    save(old, 1)
    save(old, 2)
    start_attempt(job, 2, 1)  # it had listed before step 2 was committed
    [late, good] = list_checkpoints(job)
    assert (late.ref.step, late.state) == (2, State.FENCED)
    assert (good.ref.step, good.state) == (1, State.COMMITTED)
    save(build(job, attempt=2), 2)
    newest = latest(job)
    assert newest is not None
    assert (newest.step, newest.attempt) == (2, 2)


def test_ranks_commit_together_without_a_collective(build: Build, job: JobFolder) -> None:
    ranks = [build(job, rank=rank, world_size=2) for rank in (0, 1)]
    ranks[0].save(1, whole_state(1))
    time.sleep(0.5)
    assert latest(job) is None  # rank 1's part is not there
    ranks[1].save(1, whole_state(1))
    assert all(rank.wait(60) for rank in ranks)
    assert [rank.committed_step for rank in ranks] == [1, 1]


def test_a_rank_that_never_comes_is_named_after_the_deadline(build: Build, job: JobFolder) -> None:
    first = build(job, rank=0, world_size=3, commit_deadline_s=2.0)
    first.save(1, whole_state(1))
    with pytest.raises(SaveFailed, match=r"2 of 3 ranks have not written their part \(rank 1 first\) after 2 s"):
        first.wait(60)
