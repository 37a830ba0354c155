"""What the local launcher says of a job once its ledger is read: attempts, restarts, a leader found dead, log lines."""

from pathlib import Path

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import LogLine, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.builders import attempt_end, attempt_start, node_joined, progress
from stagecoach.testing.local_world import LocalWorld, wait_for


@pytest.fixture
def job(world: LocalWorld) -> JobFolder:
    return JobFolder.open(world.spec().job_uri)


@pytest.fixture
def handle(world: LocalWorld) -> RunHandle:
    """A running job of one node."""
    handle = world.launcher().submit(world.spec(nodes=1))
    wait_for(lambda: world.is_up(handle), "the job to be up")
    return handle


def start_attempt(job: JobFolder, attempt: int, *, submission: int = 1, resumed_from_step: int = 0) -> None:
    job.claim_attempt(attempt_start(attempt=attempt, submission=submission, nodes=1, resumed_from_step=resumed_from_step))


def test_phases_follow_the_ledger_of_this_submission_only(world: LocalWorld, job: JobFolder, handle: RunHandle) -> None:
    def seen() -> tuple[Phase, int | None, int]:
        state = world.launcher().describe(handle)
        return state.phase, state.attempt, state.restarts

    start_attempt(job, 1, submission=7)
    assert seen() == (Phase.STARTING, None, 0)
    start_attempt(job, 2)
    assert seen() == (Phase.STARTING, 2, 0)
    job.join_node(node_joined(attempt=2, node=0))
    assert seen() == (Phase.RUNNING, 2, 0)
    job.end_attempt(attempt_end(attempt=2, restarts_in_place=True))
    assert seen() == (Phase.RESTARTING, 2, 0)
    start_attempt(job, 3)
    job.join_node(node_joined(attempt=3, node=0))
    assert seen() == (Phase.RUNNING, 3, 1)


def test_a_leader_found_dead_gets_its_end_written_once(world: LocalWorld, job: JobFolder, handle: RunHandle) -> None:
    start_attempt(job, 1, resumed_from_step=10)
    job.join_node(node_joined(attempt=1, node=0, machine="gpu-7"))
    job.write_progress(progress(attempt=1, step=25, committed_step=20))
    job.store.create_if_absent("checkpoints/step-00000020/attempt-1/COMMITTED", b"digest")
    world.lose(handle)
    assert job.attempt_end(1) is None
    for _ in range(2):
        assert world.launcher().describe(handle).phase == Phase.FAILED
        end = job.attempt_end(1)
        assert end is not None
        assert (end.kind, end.exit_code, end.written_by, end.first_failed_node) == ("found_dead", 75, "controller", "gpu-7")
        assert (end.step, end.committed_step, end.steps_lost) == (25, 20, 5)


def test_what_the_leader_said_itself_stands(world: LocalWorld, job: JobFolder, handle: RunHandle) -> None:
    start_attempt(job, 1)
    said = attempt_end(attempt=1)
    job.end_attempt(said)
    world.lose(handle)
    world.launcher().describe(handle)
    assert job.attempt_end(1) == said


def test_a_ledger_that_cannot_be_read_hides_nothing_this_machine_knows(world: LocalWorld, job: JobFolder, handle: RunHandle) -> None:
    job.store.create_if_absent("attempts/1/start.json", b"not json")
    state = world.launcher().describe(handle)
    assert state.phase == Phase.STARTING
    assert "the ledger cannot be read" in state.reason
    assert "start.json" in state.reason
    world.lose(handle)
    state = world.launcher().describe(handle)
    assert (state.phase, state.exit_code) == (Phase.FAILED, 75)


def test_rank_lines_come_with_their_attempt_and_unshipped_ones_from_the_nodes_file(
    world: LocalWorld, job: JobFolder, handle: RunHandle
) -> None:
    for attempt in (1, 2):
        start_attempt(job, attempt)
        job.write_segment("logs", attempt, "rank-0", 0, f"first {attempt}\nsecond {attempt}\n".encode())
        job.write_segment("logs", attempt, "supervisor", 0, b"shipped\n")
    file: Path = world.nodes(handle)[0].path("log")
    with file.open("a") as log:
        log.write(
            "[rank 0] first 1\n[rank 0] second 1\n[rank 0] first 2\n[rank 0] second 2\n[rank 0] not shipped\n[rank 1] only here\nbye\n"
        )
    launcher = world.launcher()
    ranks = [LogLine(attempt=attempt, rank=0, text=f"{word} {attempt}") for attempt in (1, 2) for word in ("first", "second")]
    unshipped = [LogLine(attempt=2, rank=0, text="not shipped"), LogLine(attempt=2, rank=1, text="only here")]
    own = [LogLine(attempt=0, rank=-1, text=text) for text in ("stand-in of node-0 is up", "bye")]
    assert list(launcher.logs(handle)) == own + ranks + unshipped
    assert list(launcher.logs(handle, rank=0)) == ranks + unshipped[:1]
    assert list(launcher.logs(handle, rank=-1)) == own
    assert list(launcher.logs(handle, attempt=2)) == [LogLine(attempt=2, rank=-1, text="shipped"), *ranks[2:]]
    assert list(launcher.logs(handle, attempt=2, rank=-1)) == [LogLine(attempt=2, rank=-1, text="shipped")]
