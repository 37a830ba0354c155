"""Ranks that wait for the next attempt: it is they who run it, and where one is lost a restart is as it ever was."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stagecoach.testing.local_world import wait_for
from stagecoach.testing.supervised import SupervisedJob, expected_state, rank_and_attempt_of

from .conftest import StartJob

LONG = {"steps": 240, "step_s": 0.05}  # ranks are warm after some 60 on two quiet cores


def waiting(job: SupervisedJob) -> dict[int, psutil.Process]:
    """By rank: those that nobody has told yet which attempt they are of."""
    found = [process for process in job.processes() if "--wait" in process.cmdline() and rank_and_attempt_of(process) is None]
    return {int(process.environ()["RANK"]): process for process in found}


def test_the_ranks_that_wait_are_those_of_the_next_attempt(make_job: StartJob) -> None:
    job = make_job(LONG)
    job.start()
    job.wait_step(3)
    wait_for(lambda: len(waiting(job)) == 2, "two ranks to wait", 30)
    ahead = {rank: process.pid for rank, process in waiting(job).items()}
    job.rank_process(1).kill()
    job.wait_line(r"attempt 2 \(", timeout_s=30)
    job.wait_line(r"^\[rank 0\] step ", since=len(job.lines))
    assert {rank: job.rank_process(rank).pid for rank in (0, 1)} == ahead
    assert rank_and_attempt_of(job.rank_process(1)) == (1, 2)
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["crashed", "done"]
    assert job.result()["state"] == expected_state(240, 2)


def test_without_one_of_them_the_next_attempt_starts_its_own(make_job: StartJob) -> None:
    job = make_job(LONG)
    job.start()
    job.wait_step(3)
    wait_for(lambda: len(waiting(job)) == 2, "two ranks to wait", 30)
    lost = waiting(job)
    lost[0].kill()
    psutil.wait_procs(list(lost.values()), timeout=10)
    assert not any(process.is_running() for process in lost.values())  # the other went with their agent
    job.rank_process(0).kill()
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["crashed", "done"]


def test_one_that_is_lost_while_its_agent_is_busy_costs_no_attempt(make_job: StartJob) -> None:
    """An agent hears of it between two lines of Python, and an import of torch is one for a second: here, it never hears of it."""
    job = make_job(LONG)
    job.start()
    job.wait_step(3)
    wait_for(lambda: len(waiting(job)) == 2, "two ranks to wait", 30)
    lost = waiting(job)[1]
    lost.parent().suspend()
    lost.kill()
    job.rank_process(0).kill()
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["crashed", "done"]


def test_nobody_waits_where_an_attempt_has_several_nodes(make_job: StartJob) -> None:
    job = make_job(LONG, nodes=2, ranks=1)
    job.start_all()
    job.wait_step(40)
    assert waiting(job) == {}
    assert [job.wait(node) for node in range(2)] == [0, 0]


def test_nobody_waits_beside_what_is_no_training(make_job: StartJob) -> None:
    job = make_job({**LONG, "phase": "evaluation"})
    job.start()
    job.wait_step(200)
    assert waiting(job) == {}
    assert job.wait() == 0


@pytest.mark.parametrize("room", ["train", "evaluation"])
def test_a_rank_that_waits_has_imported_what_its_entrypoint_puts_off(room: str) -> None:
    command = [sys.executable, "-m", "stagecoach_workloads.rank", f"stagecoach_workloads.{room}:main", "--wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "STAGECOACH_AGENT_PID": str(os.getpid())}) as rank:
        maps = Path(f"/proc/{rank.pid}/maps")
        wait_for(lambda: "libtorch_cpu" in maps.read_text(), "torch to be imported", 60)
    assert rank.returncode == 0  # the end of its input: nobody wants it
