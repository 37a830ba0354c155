"""Which attempt is next, and from where it resumes, by what stands in the ledger."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from stagecoach.checkpoints import latest_committed
from stagecoach.contract.job import AttemptEnd, AttemptStart, Ending
from stagecoach.contract.ledger import JobFolder
from stagecoach.supervisor.claims import AttemptTaken, NoProgress, attempts_without_progress, bury_the_dead, claim_next
from stagecoach.testing.builders import TIME, launch_spec


@pytest.fixture
def job() -> JobFolder:
    return JobFolder.open(f"memory://{uuid.uuid4().hex}/job")


def claim(job: JobFolder, **options: bool) -> AttemptStart:
    return claim_next(job, launch_spec(job_uri=job.uri), submission=1, host="here", port=1234, in_place=options.get("in_place", False))


def end(job: JobFolder, attempt: int, kind: Ending, code: int) -> None:
    job.end_attempt(AttemptEnd(attempt=attempt, kind=kind, exit_code=code, message=f"it was {kind}", written_by="leader", ended_at=TIME))


def commit(job: JobFolder, step: int, attempt: int) -> None:
    job.store.publish(f"checkpoints/step-{step:08d}/attempt-{attempt}/COMMITTED", b"digest")


def test_a_commit_of_a_fenced_attempt_is_never_read(job: JobFolder) -> None:
    claim(job)
    commit(job, 10, 1)
    end(job, 1, "crashed", 75)
    assert claim(job).resumed_from_step == 10
    commit(job, 20, 1)  # what attempt 1 still wrote after attempt 2 began
    assert latest_committed(job) == (10, job.store.uri_of("checkpoints/step-00000010/attempt-1"))
    commit(job, 15, 2)
    assert latest_committed(job)[0] == 15
    commit(job, 10, 2)  # same step by a later attempt: it wins over the earlier one only at that step
    assert latest_committed(job)[0] == 15


def test_a_quarantined_or_uncommitted_checkpoint_is_passed_over(job: JobFolder) -> None:
    claim(job)
    commit(job, 10, 1)
    commit(job, 20, 1)
    job.store.publish("checkpoints/step-00000020/attempt-1/QUARANTINED", b"why")
    job.store.publish("checkpoints/step-00000030/attempt-1/MANIFEST.json", b"{}")
    assert latest_committed(job)[0] == 10


def test_an_attempt_without_an_end_is_buried_by_its_successor(job: JobFolder) -> None:
    claim(job)
    found = bury_the_dead(job, job.newest_attempt())
    assert (found.kind, found.exit_code, found.written_by) == ("found_dead", 75, "successor")
    assert claim(job).attempt == 2


def test_three_counted_attempts_without_progress_end_the_job_and_stopped_ones_are_passed_over(job: JobFolder) -> None:
    for attempt, (kind, code) in enumerate([("crashed", 75), ("stopped", 143), ("hung", 75), ("stopped", 143)], start=1):
        assert claim(job).attempt == attempt
        end(job, attempt, kind, code)
    assert attempts_without_progress(job, 0) == [3, 1]
    claim(job)
    with pytest.raises(NoProgress, match=r"attempts 1, 3, 5 committed nothing past step 0; the last one: .*no end was written"):
        claim(job)  # buries attempt 5
    assert (job.attempt_end(6).kind, job.attempt_end(6).exit_code) == ("no_progress", 44)
    assert claim(job).attempt == 7  # somebody looked, and started it again


def test_a_commit_starts_the_count_anew(job: JobFolder) -> None:
    for attempt in range(1, 9):
        claim(job)
        if attempt % 3 == 0:
            commit(job, attempt, attempt)
        end(job, attempt, "crashed", 75)
    assert attempts_without_progress(job, latest_committed(job)[0]) == [8, 7]


@pytest.mark.parametrize("_", range(20))
def test_of_two_supervisors_that_claim_at_once_no_two_lead_one_attempt(job: JobFolder, _: int) -> None:
    together = threading.Barrier(2)

    def contend(_: int) -> int | None:
        together.wait()
        try:
            return claim(job).attempt
        except AttemptTaken:
            return None

    with ThreadPoolExecutor(2) as pool:
        claimed = [attempt for attempt in pool.map(contend, range(2)) if attempt is not None]
    assert sorted(claimed) == job.attempt_numbers()


@pytest.mark.parametrize(
    ("kind", "code", "in_place", "why"),
    [("stopped", 143, False, "preempted"), ("crashed", 75, True, "restart"), ("crashed", 75, False, "retry")],
)
def test_the_start_says_why(job: JobFolder, kind: Ending, code: int, in_place: bool, why: str) -> None:
    assert claim(job).why == "first"
    end(job, 1, kind, code)
    assert claim(job, in_place=in_place).why == why


def test_a_supervisor_that_was_taken_for_dead_does_not_take_its_successor_for_dead(job: JobFolder) -> None:
    """F31: it was frozen, another claimed the next attempt, and now it wakes: its own attempt ends, and it would restart in place."""
    spec = launch_spec(job_uri=job.uri)
    assert claim(job).attempt == 1
    assert claim(job).attempt == 2
    with pytest.raises(AttemptTaken, match=r"attempt 2 of .* was claimed at here after attempt 1 was taken for dead"):
        claim_next(job, spec, submission=1, host="old", port=1, in_place=True, own=1)
    assert job.attempt_numbers() == [1, 2]
    assert job.attempt_end(2) is None
    assert claim_next(job, spec, submission=1, host="here", port=1234, in_place=True, own=2).attempt == 3
