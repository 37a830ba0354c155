"""Ranks that neither work nor die."""

from stagecoach.testing.supervised import expected_state

from .conftest import StartJob

HANGS = [("sigstop", 1), ("hold_gil", 0), ("livelock", 1), ("spin", 0)]


def test_every_kind_of_hang_is_found_named_and_restarted(make_job: StartJob) -> None:
    faults = [{"kind": kind, "rank": rank, "step": 2 * number, "attempt": number} for number, (kind, rank) in enumerate(HANGS, start=1)]
    job = make_job({"steps": 12, "commit_every": 1, "faults": faults})
    job.start(environment={"STAGECOACH_HANG_S": "3"})
    assert job.wait(timeout_s=120) == 0
    *hung, last = job.ends()
    for end, (kind, rank) in zip(hung, HANGS, strict=True):
        assert (end.kind, end.exit_code, end.first_failed_rank) == ("hung", 75, rank), (kind, end.message)
        assert f"rank {rank} hangs" in end.message
        stacks = {item.rank: item.stack or "" for item in end.ranks}
        assert all(stacks.values())
        if kind == "sigstop":
            assert stacks[rank].startswith("state: T")
        else:  # py-spy saw the very function
            assert f"_{kind}" in stacks[rank]
    assert last.kind == "done"
    assert job.result()["state"] == expected_state(12, 2)


def test_a_rank_that_hangs_before_its_first_step_is_found_too(make_job: StartJob) -> None:
    job = make_job({"steps": 3, "faults": [{"kind": "spin", "rank": 1, "step": -1}]})
    job.start(environment={"STAGECOACH_FIRST_STEP_S": "15"})
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["hung", "done"]
