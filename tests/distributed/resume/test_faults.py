"""Faults that are no kill: bad numbers on one rank, a flipped bit, a stop that every process hears."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import Story, read_trace
from stagecoach.testing.supervised import SupervisedJob
from stagecoach.testing.training import toy_stage

pytestmark = pytest.mark.timeout(600)
TRACED = "stagecoach_workloads.testing.traced:main"
BAD_AT = tuple(range(104, 110))  # six in a row: five are skipped, at the sixth the weights are suspect


def run(
    folder: Path, plan: StagePlan, faults: Sequence[Mapping[str, Any]], *, ranks: int = 2, entrypoint: str = TRACED, **environment: str
) -> tuple[SupervisedJob, Path]:
    """A job that ends by itself, and where its ranks told their events."""
    job = SupervisedJob(folder, {}, ranks=ranks, entrypoint=entrypoint)
    job.job.write_plan(plan)
    marked = [{"attempt": None, "mark": str(folder / f"mark-{number}"), **fault} for number, fault in enumerate(faults)]
    trace = folder / "trace"
    trace.mkdir()
    try:
        job.start(environment={"STAGECOACH_TEST_FAULTS": json.dumps(marked), "STAGECOACH_TEST_TRACE": str(trace), **environment})
        assert job.wait(timeout_s=280) == 0, job.tail()
        assert job.survivors() == []
        assert len(list(folder.glob("mark-*"))) == len(faults)
    finally:
        job.close()
    return job, trace


def told(trace: Path, name: str, *, rank: int, attempt: int = 1) -> list[tuple[int, Any]]:
    """(step, value) of a rank's events of that name."""
    lines = (trace / f"attempt-{attempt}-rank-{rank}.jsonl").read_text().splitlines()
    events = map(json.loads, lines)
    return [(event["step"], event["value"]) for event in events if event["name"] == name]


def test_bad_numbers_on_one_rank_are_skipped_on_all_and_in_a_row_rewound(tmp_path: Path, corpus: str) -> None:
    """F68, F69: the weights move on no rank, each tells its own samples, and nobody stops."""
    plan = toy_stage(corpus, ["duration.steps=112", "checkpoint.every_steps=50"])
    spikes = [{"at": "forward", "step": step, "rank": 1, "action": "spike", "value": 1e4} for step in BAD_AT]
    job, trace = run(tmp_path, plan, [{"at": "forward", "step": 4, "rank": 1, "action": "nan"}, *spikes])
    assert [(end.kind, end.step) for end in job.ends()] == [("done", 112)]
    for rank in (0, 1):
        skipped = told(trace, "skipped", rank=rank)
        assert [step for step, _ in skipped] == [4, *BAD_AT[:5]]
        assert "not finite" in skipped[0][1]["reason"]
        assert "times the usual" in skipped[1][1]["reason"]
        assert all(value["sample_ids"] for _, value in skipped)
        updated = [step for step, phase in told(trace, "phase", rank=rank) if phase == "optimizer_step"]
        assert updated == [step for step in range(1, 104) if step != 4] + list(range(101, 113))
        assert [(step, value["to_step"]) for step, value in told(trace, "rewound", rank=rank)] == [(BAD_AT[5], 100)]
    hashes = [value for _, value in told(trace, "sample_ids", rank=0)]
    assert len(set(hashes)) == len(hashes)  # what was left out is not met again
    assert set(told(trace, "skipped", rank=0)[0][1]["sample_ids"]).isdisjoint(told(trace, "skipped", rank=1)[0][1]["sample_ids"])


def test_a_bit_that_flips_on_one_of_three_copies_is_named_and_not_saved(tmp_path: Path, corpus: str) -> None:
    """F70: the ranks agree on who is odd before the save; what is saved is from before the flip."""
    plan = toy_stage(corpus, ["duration.steps=9", "layout.dp_replicate=3", "layout.ranks_per_node=3"])
    job, trace = run(tmp_path, plan, [{"at": "staging", "step": 6, "rank": 1, "action": "flip"}], ranks=3)
    flipped, done = job.ends()
    assert (flipped.kind, flipped.exit_code, done.kind) == ("crashed", 75, "done")
    assert "step 6: rank 1 holds other values than its replicas" in flipped.message
    for rank in range(3):
        assert told(trace, "replicas_differ", rank=rank) == [(6, [1])]
        assert told(trace, "replicas_differ", rank=rank, attempt=2) == []
    start = job.job.attempt_start(2)
    assert start is not None
    assert start.resumed_from_step == 3
    story = Story()
    read_trace(trace, story)
    assert story.problems == []  # steps 4 to 6 were taken twice, and were the same


def test_ranks_that_the_network_parts_are_found_and_meet_again(tmp_path: Path, corpus: str, impatient: str) -> None:
    """F71: no connection ends and nobody answers any more. The watchdog ends it, and the next attempt goes on exactly."""
    parting = {"at": "all_reduce", "step": 6, "rank": 1, "action": "partition"}
    job, trace = run(tmp_path, toy_stage(corpus), [parting], entrypoint=impatient, STAGECOACH_HANG_S="8")
    assert [(end.kind, end.exit_code) for end in job.ends()] == [("hung", 75), ("done", 0)]
    story = Story()
    read_trace(trace, story)
    assert story.problems == []
    assert set(story.losses) == set(range(1, 9))


def test_a_stop_that_reaches_every_process_is_still_saved(tmp_path: Path, plan: StagePlan) -> None:
    """F19: SIGTERM to all at once, as a service manager or a `kill` of a whole group sends it. Data is loaded in threads of the ranks;
    what else there is (agent, saving processes, sweeper, guards) must leave the stop to the supervisor."""
    job = SupervisedJob(tmp_path, {}, grace_s=90, entrypoint="stagecoach_workloads.train:main")
    job.job.write_plan(plan)
    try:
        job.start()
        job.wait_line(r"\[rank 0\] step 1/", timeout_s=200)
        processes = job.processes()
        assert len(processes) > 6  # a supervisor, its agent, two ranks and a saving process of each are the least
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        assert job.wait(timeout_s=120) == 143, job.tail()
        (end,) = job.ends()
        assert (end.kind, end.steps_lost) == ("stopped", 0)
        assert end.committed_step > 0
        assert job.survivors() == []
    finally:
        job.close()


def test_a_loader_that_is_stuck_is_found_although_the_rank_waits_in_good_order(tmp_path: Path, corpus: str, impatient: str) -> None:
    """The main thread looks several times a second whether data came; that alone is no sign that anything moves."""
    stuck = {"at": "load", "step": 5, "action": "sleep"}
    job, _ = run(tmp_path, toy_stage(corpus), [stuck], ranks=1, entrypoint=impatient, STAGECOACH_HANG_S="8")
    hung, done = job.ends()
    assert (hung.kind, hung.exit_code, hung.step, done.kind) == ("hung", 75, 4, "done")
    assert "in phase data_wait at step 4" in hung.message
    assert "reached" in (hung.ranks[0].stack or "")  # the thread that loads, where it stands


def test_data_that_is_late_on_one_rank_makes_the_others_wait_and_nobody_hang(tmp_path: Path, corpus: str) -> None:
    """A store in trouble may take three minutes; the ranks that have their data are in the same case as the one that has not."""
    late = {"at": "load", "step": 5, "rank": 1, "action": "sleep", "value": 12.0}
    job, _ = run(tmp_path, toy_stage(corpus), [late], STAGECOACH_HANG_S="8")
    assert [end.kind for end in job.ends()] == ["done"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> str:
    """An entry point beside this file."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    return "impatient:main"
