"""Ranks that die, in every way they can: the exit code is right, the first failed rank is named, and the work is exact afterwards."""

import pytest

from stagecoach.testing.supervised import expected_state

from .conftest import StartJob

# In one job, each in its own attempt: (kind, rank, words its end must contain)
COUNTED = [
    ("sigkill", 1, "crashed", "rank 1 was killed by SIGKILL"),
    ("segfault", 0, "crashed", "rank 0 was killed by SIGSEGV"),
    ("abort", 1, "crashed", "rank 1 was killed by SIGABRT"),
    ("exception", 0, "crashed", "rank 0, step 7: ValueError: the script says: fail here"),
    ("exit", 1, "crashed", "rank 1 ended with exit code 0 and without a word"),
    ("sys_exit", 0, "crashed", "rank 0, step 11: left by sys.exit(0)"),
    ("return", 1, "crashed", "rank 1 returned as done while other ranks still worked"),
    ("memory", 0, "out_of_memory", "rank 0, step 15: MemoryError"),
    ("store_gone", 1, "store_gone", "rank 1, step 17: the bucket did not answer"),
    ("loader_killed", 0, "crashed", "rank 0, step 19: RuntimeError: DataLoader worker"),
]


def test_every_kind_of_crash_is_told_from_the_others_and_the_work_is_exact(make_job: StartJob) -> None:
    faults = [
        {"kind": kind, "rank": rank, "step": 2 * number - 1, "attempt": number} for number, (kind, rank, *_) in enumerate(COUNTED, start=1)
    ]
    job = make_job({"steps": 24, "step_s": 0.01, "commit_every": 1, "faults": faults})
    job.start()
    assert job.wait(timeout_s=200) == 0
    *crashed, last = job.ends()
    for end, (_, rank, kind, words) in zip(crashed, COUNTED, strict=True):
        assert (end.kind, end.exit_code, end.first_failed_rank, end.first_failed_node) == (kind, 75, rank, "machine-0"), end
        assert words in end.message
        assert end.restarts_in_place
        assert end.steps_lost == end.step - end.committed_step <= 1
    assert (last.kind, last.exit_code) == ("done", 0)
    assert job.result() == {"step": 24, "state": expected_state(24, 2)}


@pytest.mark.parametrize(
    ("kind", "code"), [("bad_config", 40), ("bad_data", 41), ("bad_checkpoint", 42), ("diverged", 43)]
)  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fatal_error_of_the_first_failed_rank_wins_and_is_never_retried(make_job: StartJob, kind: str, code: int, rank: int) -> None:
    job = make_job({"steps": 20, "faults": [{"kind": kind, "rank": rank, "step": 3}]})
    job.start()
    assert job.wait() == code
    (end,) = job.ends()
    assert (end.exit_code, end.first_failed_rank, end.step) == (code, rank, 3)
    assert f"rank {rank}, step 3: " in end.message


def test_an_entrypoint_that_does_not_exist_is_the_authors_to_repair(make_job: StartJob) -> None:
    job = make_job({}, entrypoint="stagecoach_workloads.no_such_module:main")
    job.start()
    assert job.wait() == 40
    (end,) = job.ends()
    assert "No module named 'stagecoach_workloads.no_such_module'" in end.message


def test_three_attempts_that_commit_nothing_are_enough(make_job: StartJob) -> None:
    job = make_job({"steps": 20, "faults": [{"kind": "sigkill", "rank": 1, "step": 2, "attempt": None}]})
    job.start()
    assert job.wait() == 44
    assert [(end.kind, end.exit_code) for end in job.ends()] == [("crashed", 75)] * 3 + [("no_progress", 44)]
    assert "attempts 1, 2, 3 committed nothing past step 0" in job.ends()[-1].message
    assert "rank 1 was killed by SIGKILL" in job.ends()[-1].message
    assert job.job.nodes(4) == []  # the fourth was never started


def test_a_rank_killed_before_the_process_group_exists_does_not_keep_the_job_down(make_job: StartJob) -> None:
    job = make_job({"steps": 3, "faults": [{"kind": "sigkill", "rank": 1, "step": -1}]})
    job.start()
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["crashed", "done"]


def test_four_ranks_go_on_after_one_was_killed_from_outside(make_job: StartJob) -> None:
    job = make_job({"steps": 60, "step_s": 0.05}, ranks=4)
    job.start()
    job.wait_step(10)
    job.rank_process(2).kill()
    assert job.wait() == 0
    crashed, done = job.ends()
    assert (crashed.first_failed_rank, crashed.message, done.kind) == (2, "rank 2 was killed by SIGKILL", "done")
    assert job.result()["state"] == expected_state(60, 4)
