"""SIGKILL to any process of the tree: nothing of the job is left 2 s later, and the next start is clean.

The fixture `make_job` looks for processes, shared memory and scratch folders after every test of this folder.
"""

import signal

import psutil
import pytest

from stagecoach.testing.supervised import SupervisedJob, expected_state

from .conftest import StartJob

WITH_HELPERS = {"steps": 400, "loaders": 2, "faults": [{"kind": "leak_child", "rank": 0, "step": 1, "attempt": None}]}


def of_module(job: SupervisedJob, module: str) -> psutil.Process:
    return next(process for process in job.processes() if module in process.cmdline())


@pytest.mark.parametrize("victim", ["supervisor", "sweeper then supervisor"])
def test_sigkill_of_the_supervisor_leaves_nothing_and_the_next_one_goes_on(make_job: StartJob, victim: str) -> None:
    job = make_job(WITH_HELPERS | {"steps": 60, "step_s": 0.05})
    supervisor = job.start()
    job.wait_step(12)
    assert len(job.processes()) >= 12  # supervisor, sweeper, agents, 2 ranks, 8 helpers and a leaked one
    if victim != "supervisor":
        sweeper = of_module(job, "stagecoach.supervisor.sweeper")
        sweeper.kill()
        sweeper.wait(5)
        job.wait_step(20)  # by then another sweeper has been started
    supervisor.kill()
    assert job.leftovers(2.0) == []
    job.start()
    assert job.wait() == 0
    dead, done = job.ends()
    assert (dead.kind, dead.exit_code, dead.written_by, done.kind) == ("found_dead", 75, "successor", "done")
    assert job.result()["state"] == expected_state(60, 2)


def test_sigkill_of_the_supervisor_and_its_sweeper_at_once_leaves_nothing_either(make_job: StartJob) -> None:
    job = make_job(WITH_HELPERS | {"steps": 100_000, "step_s": 0.05})
    supervisor = job.start()
    job.wait_step(60)  # the list of shared memory has been written by then
    sweeper = of_module(job, "stagecoach.supervisor.sweeper")
    for process in (supervisor, sweeper):
        process.send_signal(signal.SIGSTOP)  # so that neither sees the other go
    programs = [process for process in job.processes() if "time.sleep" in " ".join(process.cmdline())]
    assert len(programs) == 5  # two a rank, and the leaked one
    for process in (sweeper, supervisor):
        process.kill()
    assert job.leftovers(3.0) == []


def test_sigkill_of_a_ranks_guard_hurts_nobody(make_job: StartJob) -> None:
    job = make_job(WITH_HELPERS | {"steps": 60, "step_s": 0.05})
    job.start()
    job.wait_step(7)
    guards = [process for process in job.processes() if any(word.endswith("contract/tree.py") for word in process.cmdline())]
    assert len(guards) == 2
    for process in guards:
        process.kill()
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["done"]


def test_sigkill_of_torchruns_agent_is_a_crash_like_any_other(make_job: StartJob) -> None:
    job = make_job(WITH_HELPERS | {"steps": 60, "step_s": 0.05})
    job.start()
    job.wait_step(7)
    psutil.Process(job.rank_process(0).ppid()).kill()
    assert job.wait() == 0
    crashed, done = job.ends()
    assert (crashed.kind, crashed.message, done.kind) == (
        "crashed",
        "torchrun's agent was killed by SIGKILL, and its ranks with it",
        "done",
    )


def test_sigkill_of_a_rank_takes_its_children_along(make_job: StartJob) -> None:
    job = make_job(WITH_HELPERS | {"steps": 60, "step_s": 0.05})
    job.start()
    job.wait_step(7)
    rank = job.rank_process(1)
    children = rank.children(recursive=True)
    assert len(children) >= 4
    rank.kill()
    _, alive = psutil.wait_procs(children, timeout=3)
    assert alive == []
    assert job.wait() == 0


def test_sigkill_of_a_ranks_child_hurts_nobody(make_job: StartJob) -> None:
    job = make_job(WITH_HELPERS | {"steps": 60, "step_s": 0.05})
    job.start()
    job.wait_step(7)
    for child in job.rank_process(1).children():
        if not any(helper in " ".join(child.cmdline()) for helper in ("resource_tracker", "contract/tree.py")):
            child.kill()
            break
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["done"]
