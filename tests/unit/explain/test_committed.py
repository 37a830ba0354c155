"""What is safe is what a reader of checkpoints would take, not what an attempt last told of itself."""

import uuid

import pytest

from stagecoach.checkpoints import quarantine
from stagecoach.explain.facts import gather_job
from stagecoach.explain.verdict import explain_job
from stagecoach.testing.checkpoints import write_checkpoint
from stagecoach.testing.ledger import JobBook, write_job


@pytest.fixture
def book() -> JobBook:
    book = write_job(f"memory://{uuid.uuid4().hex}", "job")
    book.submit()
    book.start(1)
    return book


def committed(book: JobBook) -> int | None:
    return explain_job(gather_job("job", book.folder, is_stage=False), run="job").committed_step


def test_a_commit_after_the_last_heartbeat_counts(book: JobBook) -> None:
    book.progress(1, step=14, committed_step=5)
    write_checkpoint(book.folder, 10)
    assert committed(book) == 10


def test_a_step_that_was_found_bad_does_not_count(book: JobBook) -> None:
    write_checkpoint(book.folder, 5)
    bad = write_checkpoint(book.folder, 10)
    book.end(1, "crashed", 75, step=12, committed_step=10)
    book.start(2, resumed_from_step=10)
    quarantine(book.folder, bad, "a block")
    assert committed(book) == 5


def test_a_fenced_commit_does_not_count(book: JobBook) -> None:
    write_checkpoint(book.folder, 5)
    book.start(2, resumed_from_step=5)
    book.progress(2, step=7, committed_step=5)
    write_checkpoint(book.folder, 10, 1)
    assert committed(book) == 5


def test_a_job_without_checkpoints_is_taken_at_its_word(book: JobBook) -> None:
    book.progress(1, step=14, committed_step=12)
    assert committed(book) == 12
