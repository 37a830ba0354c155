"""Supervisor, launcher and `explain` count attempts and bury dead ones by one rule."""

import uuid

import pytest

from stagecoach.contract.attempts import end_the_dead, without_progress
from stagecoach.contract.job import AttemptEnd
from stagecoach.contract.ledger import JobFolder
from stagecoach.explain.facts import gather
from stagecoach.explain.resolve import find
from stagecoach.explain.verdict import explain
from stagecoach.supervisor.claims import attempts_without_progress
from stagecoach.testing.builders import TIME, attempt_start, node_joined, progress
from stagecoach.testing.ledger import JobBook, write_run


@pytest.fixture
def job() -> JobFolder:
    return JobFolder.open(f"memory://{uuid.uuid4().hex}/job")


CRASHED, STOPPED, FATAL = ("crashed", 75), ("stopped", 143), ("diverged", 43)


@pytest.mark.parametrize(
    ("attempts", "committed", "row"),
    [  # each attempt: how it ended, the step it resumed from; then what is committed at the end, and the row
        ([], 0, []),
        ([(CRASHED, 0), (CRASHED, 0), (CRASHED, 0)], 0, [3, 2, 1]),
        ([(CRASHED, 0), (STOPPED, 0), (CRASHED, 10), (CRASHED, 10)], 10, [4, 3]),  # the stopped one saved before it went
        ([(CRASHED, 0), (STOPPED, 0), (CRASHED, 0), (CRASHED, 0)], 0, [4, 3, 1]),
        ([(CRASHED, 0), (CRASHED, 10), (CRASHED, 10)], 20, []),
        ([(CRASHED, 10), (FATAL, 10), (CRASHED, 10)], 10, [3]),
        ([(CRASHED, 10), (CRASHED, 20), (STOPPED, 20)], 20, [2]),
    ],
)
def test_the_supervisor_and_explain_count_alike(
    attempts: list[tuple[tuple[str, int], int]], committed: int, row: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = f"file://{tmp_path_factory.mktemp('root')}"
    book: JobBook = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    resumed = [step for _, step in attempts]
    for number, ((kind, code), step) in enumerate(attempts, start=1):
        reached = resumed[number] if number < len(resumed) else committed
        book.start(number, resumed_from_step=step)
        book.end(number, kind, code, step=reached, committed_step=reached)
    assert attempts_without_progress(book.folder, committed) == row
    assert explain(gather(find("r1", root=root))).without_progress == len(row)


def test_no_more_of_the_ledger_is_read_than_decides() -> None:
    def endless():  # type: ignore[no-untyped-def]
        for number in range(100, 0, -1):
            assert number > 97
            end = AttemptEnd(attempt=number, kind="crashed", exit_code=75, written_by="leader", ended_at=TIME)
            yield number, attempt_start(attempt=number), end

    assert without_progress(endless(), 0) == [100, 99, 98]


@pytest.mark.parametrize("by", ["successor", "controller"])
@pytest.mark.parametrize("damaged", [False, True])
def test_whoever_finds_a_dead_attempt_writes_the_same_end(job: JobFolder, by: str, damaged: bool) -> None:
    start = attempt_start(resumed_from_step=10, leader_host="10.0.0.7")
    job.claim_attempt(start)
    job.join_node(node_joined(attempt=1, node=0, machine="gpu-7"))
    job.write_progress(progress(attempt=1, step=25, committed_step=25, phase="train"))  # a commit that was quarantined since
    if damaged:
        job.store.publish("attempts/1/progress.json", b"{")
        job.store.publish("attempts/1/nodes/0.json", b"{")
    end_the_dead(job, start, 20, by=by, at=TIME)  # type: ignore[arg-type]
    end = job.attempt_end(1)
    assert end is not None
    assert (end.kind, end.exit_code, end.written_by, end.committed_step) == ("found_dead", 75, by, 20)
    assert "the supervisor at 10.0.0.7 was killed or its machine was lost" in end.message
    if damaged:
        assert (end.step, end.steps_lost, end.first_failed_node) == (20, 0, None)
    else:
        assert (end.step, end.steps_lost, end.first_failed_node) == (25, 5, "gpu-7")
        assert end.message.endswith("last seen at step 25 in phase train")
    end_the_dead(job, start, 20, by="controller", at=TIME, cancelled=True)
    assert job.attempt_end(1) == end  # the first word stands


def test_a_cancelled_job_whose_leader_had_to_be_killed_is_cancelled(job: JobFolder) -> None:
    job.claim_attempt(attempt_start())
    end_the_dead(job, attempt_start(), 0, by="controller", at=TIME, cancelled=True)
    end = job.attempt_end(1)
    assert end is not None
    assert (end.kind, end.exit_code, end.first_failed_node) == ("cancelled", 143, None)
