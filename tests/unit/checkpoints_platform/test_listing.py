"""Which checkpoints may be read (architecture.md section 8, F24-F31, F39)."""

import pytest

from stagecoach.checkpoints import (
    State,
    candidates,
    checkpoint_at,
    checkpoint_ref,
    latest,
    latest_committed,
    list_checkpoints,
    quarantine,
    why_none,
)
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach.testing.builders import attempt_start
from stagecoach.testing.checkpoints import write_checkpoint


def start(job: JobFolder, attempt: int, *, resumed_from_step: int) -> None:
    assert job.claim_attempt(attempt_start(attempt=attempt, resumed_from_step=resumed_from_step))


def states(job: JobFolder) -> list[tuple[int, int, State]]:
    return [(each.ref.step, each.ref.attempt, each.state) for each in list_checkpoints(job)]


def test_every_checkpoint_is_listed_with_its_state_and_the_newest_readable_is_the_latest(job: JobFolder) -> None:
    start(job, 1, resumed_from_step=0)
    good = write_checkpoint(job, 5)
    bad = write_checkpoint(job, 10)
    write_checkpoint(job, 15, commit=False)
    assert quarantine(job, bad, "block 3 is wrong")
    assert not quarantine(job, bad, "a second opinion")
    assert states(job) == [(15, 1, State.TORN), (10, 1, State.QUARANTINED), (5, 1, State.COMMITTED)]
    assert [each.reason for each in list_checkpoints(job)][1:] == ["block 3 is wrong", ""]
    assert latest(job) == good
    assert latest_committed(job) == (5, good.uri)
    says = why_none(job)
    assert "step 15, attempt 1: torn (it has no COMMITTED" in says
    assert "step 10, attempt 1: quarantined (block 3 is wrong)" in says


def test_a_step_is_compared_as_a_number_and_then_the_attempt(job: JobFolder) -> None:
    for step, attempt in ((99_999_999, 1), (100_000_000, 1), (100_000_000, 10), (100_000_000, 9)):
        start(job, attempt, resumed_from_step=100_000_000) if job.attempt_start(attempt) is None else None
        write_checkpoint(job, step, attempt)
    assert [(ref.step, ref.attempt) for ref in candidates(job)] == [(100_000_000, 10), (100_000_000, 9), (100_000_000, 1), (99_999_999, 1)]


def test_a_commit_counts_only_up_to_where_every_later_attempt_resumed(job: JobFolder) -> None:
    start(job, 1, resumed_from_step=0)
    write_checkpoint(job, 5, 1)
    start(job, 2, resumed_from_step=5)
    write_checkpoint(job, 10, 1)  # by the old attempt, late
    write_checkpoint(job, 10, 2)
    start(job, 3, resumed_from_step=10)
    write_checkpoint(job, 15, 2)
    start(job, 4, resumed_from_step=5)  # the commits at 10 were found bad in the meantime
    assert states(job) == [(15, 2, State.FENCED), (10, 2, State.FENCED), (10, 1, State.FENCED), (5, 1, State.COMMITTED)]
    assert "attempt 4 had begun from step 5" in next(iter(list_checkpoints(job))).reason


@pytest.mark.parametrize(
    "name", ["step-5/attempt-1", "step-000000005/attempt-1", "step-00000005/attempt-01", "step-٠٠٠٠٠٠٠٥/attempt-1", "tmp/x"]
)
def test_folders_with_other_names_are_not_ours(job: JobFolder, name: str) -> None:
    job.store.publish(f"checkpoints/{name}/COMMITTED", b"x")
    assert list(list_checkpoints(job)) == []
    assert latest(job) is None
    assert latest_committed(job) == (0, None)


def test_whatever_stands_in_quarantined_it_is_not_read(job: JobFolder) -> None:
    ref = write_checkpoint(job, 5)
    job.store.publish(f"{ref.key}/QUARANTINED", b"\xff[[[ by hand")
    assert next(iter(list_checkpoints(job))).state == State.QUARANTINED
    assert latest(job) is None


def test_a_job_without_checkpoints_says_so(job: JobFolder) -> None:
    assert why_none(job) == f"{job.uri} has no checkpoints"
    assert checkpoint_ref(job, 7, 2).key == "checkpoints/step-00000007/attempt-2"


def test_a_checkpoints_address_leads_back_to_it(job: JobFolder) -> None:
    ref = write_checkpoint(job, 5)
    found, there = checkpoint_at(ref.uri + "/")
    assert there == ref
    assert found.uri == job.uri
    with pytest.raises(CheckpointError, match="is no checkpoint's address"):
        checkpoint_at(job.uri)
