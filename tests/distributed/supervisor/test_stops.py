"""SIGTERM to the supervisor, in whatever the ranks are doing."""

import signal
import time

import pytest

from stagecoach.testing.supervised import expected_state

from .conftest import StartJob

GRACE_S = 60  # who listens ends long before it is over, on a busy machine too
PHASES = {  # phase -> (faults, what is heard when it is reached)
    "training": ([], r"^\[rank 1\] step 3 "),
    "data": ([{"kind": "sleep_data", "rank": rank, "step": 3} for rank in (0, 1)], r"^\[rank 1\] step 3 "),
    "evaluation": ([{"kind": "sleep_evaluation", "rank": rank, "step": 3} for rank in (0, 1)], r"^\[rank 1\] step 3 "),
}


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_is_heard_in_every_phase(make_job: StartJob, phase: str) -> None:
    faults, reached = PHASES[phase]
    job = make_job({"steps": 500, "commit_every": 3, "faults": faults}, grace_s=GRACE_S)
    supervisor = job.start()
    job.wait_line(reached)
    asked = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    assert time.monotonic() - asked < GRACE_S / 2
    (end,) = job.ends()
    assert (end.kind, end.exit_code, end.steps_lost) == ("stopped", 143, 0)


def test_ranks_that_have_not_begun_are_not_waited_for(make_job: StartJob) -> None:
    job = make_job({"steps": 5, "faults": [{"kind": "spin", "rank": 0, "step": -1}]}, grace_s=GRACE_S)
    supervisor = job.start()
    job.wait_line(r"attempt 1 \(first\)")
    asked = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    assert time.monotonic() - asked < GRACE_S / 2


def test_sigterm_while_waiting_for_other_nodes(make_job: StartJob) -> None:
    job = make_job({"steps": 5}, nodes=2, grace_s=GRACE_S)
    supervisor = job.start()
    job.wait_line(r"attempt 1 \(first\)")
    asked = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    assert time.monotonic() - asked < GRACE_S / 2
    (end,) = job.ends()
    assert (end.kind, end.message) == ("stopped", "stopped by the platform while waiting for the other nodes")


def test_a_rank_that_does_not_listen_has_its_time_to_save_and_no_more(make_job: StartJob) -> None:
    job = make_job({"steps": 50, "faults": [{"kind": "sleep_deaf", "rank": 1, "step": 4}]}, grace_s=20)
    supervisor = job.start()
    job.wait_step(4, rank=1)
    asked = time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    assert 14.9 < time.monotonic() - asked < 20  # grace 20 s less a quarter of it
    (end,) = job.ends()
    assert (end.kind, end.exit_code) == ("stopped", 143)
    assert "killed when their time to save was over" in end.message


def test_a_stopped_attempt_is_not_counted_and_its_successor_goes_on_exactly(make_job: StartJob) -> None:
    job = make_job({"steps": 40, "commit_every": 1000, "step_s": 0.05})
    for attempt, step in ((1, 3), (2, 8)):
        since = len(job.lines)
        supervisor = job.start()
        job.wait_step(step, since=since)
        supervisor.send_signal(signal.SIGTERM)
        assert job.wait() == 143
        assert job.job.attempt_start(attempt).why == ("first" if attempt == 1 else "preempted")
    job.start()
    assert job.wait() == 0
    assert [end.steps_lost for end in job.ends()] == [0] * 3
    assert job.result()["state"] == expected_state(40, 2)


def test_a_job_that_runs_longer_than_its_max_seconds_saves_and_ends_for_good(make_job: StartJob) -> None:
    job = make_job({"steps": 100_000, "commit_every": 100_000, "step_s": 0.05}, max_seconds=20)
    job.start()
    started = time.monotonic()
    assert job.wait() == 45
    assert time.monotonic() - started > 18  # it is asked at 20 s, and the ranks save at their next step
    (end,) = job.ends()
    assert (end.kind, end.exit_code, end.steps_lost, end.restarts_in_place) == ("out_of_time", 45, 0, False)
    assert end.committed_step > 0
    assert end.message.startswith("its max_seconds=20 of running are over (")


def test_the_time_that_is_over_is_over_for_all_nodes_and_for_ranks_that_do_not_listen(make_job: StartJob) -> None:
    job = make_job(
        {"steps": 100_000, "faults": [{"kind": "sleep_deaf", "rank": 1, "step": 4}]}, ranks=1, nodes=2, max_seconds=10, grace_s=4
    )
    job.start_all()
    assert (job.wait(0), job.wait(1)) == (45, 45)
    (end,) = job.ends()
    assert (end.kind, end.exit_code) == ("out_of_time", 45)


def test_time_runs_while_nodes_wait_for_each_other_and_over_restarts_in_place(make_job: StartJob) -> None:
    alone = make_job({"steps": 5}, nodes=2, max_seconds=3)
    crashing = make_job({"steps": 100_000, "commit_every": 1, "faults": [{"kind": "sigkill", "step": 3, "attempt": 1}]}, max_seconds=25)
    for job in (alone, crashing):
        job.start()
    assert alone.wait() == 45
    assert [end.kind for end in alone.ends()] == ["out_of_time"]
    assert crashing.wait() == 45
    assert [end.kind for end in crashing.ends()] == ["crashed", "out_of_time"]
