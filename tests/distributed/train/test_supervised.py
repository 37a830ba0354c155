"""Two ranks under a real supervisor: killed in mid-step, told to stop, resumed; and in the end the weights of a run never stopped."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from stagecoach.contract.job import TrainResult
from stagecoach.contract.plan import StagePlan
from stagecoach.testing.supervised import SupervisedJob
from stagecoach.testing.training import toy_stage

ENTRYPOINT = "stagecoach_workloads.train:main"


@pytest.fixture(scope="module")
def plan(corpus: str) -> StagePlan:
    return toy_stage(
        corpus, ["duration.steps=9", "checkpoint.every_steps=3", "evaluation.validate_every_steps=9", "evaluation.validation_samples=32"]
    )


def start(folder: Path, plan: StagePlan, *faults: dict[str, Any], entrypoint: str = ENTRYPOINT) -> SupervisedJob:
    job = SupervisedJob(folder, {}, entrypoint=entrypoint, grace_s=90)  # time for a save on a machine that is busy
    job.job.write_plan(plan)
    job.start(environment={"STAGECOACH_TEST_FAULTS": json.dumps(faults)} if faults else None)
    return job


def curve(job: SupervisedJob) -> dict[int, float]:
    """Loss by step; a step that was taken twice must have had the same loss and the same samples."""
    found: dict[int, Any] = {}
    for attempt in job.job.attempt_numbers():
        for event in job.job.events(attempt, "rank-0"):
            if event["name"] in ("step", "sample_ids"):
                value = event["value"]["loss"] if event["name"] == "step" else event["value"]
                assert found.setdefault((event["name"], event["step"]), value) == value
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, plan: StagePlan) -> Iterator[tuple[TrainResult, dict[int, float]]]:
    job = start(tmp_path_factory.mktemp("whole"), plan)
    try:
        assert job.wait(timeout_s=200) == 0, job.tail()
        result = job.job.result()
        assert result is not None
        assert any(event["name"] == "samples" for event in job.job.events(1, "rank-0"))
        yield result, curve(job)
    finally:
        job.close()


@pytest.mark.parametrize("processes", [0, 1])
def test_a_rank_killed_in_mid_step_changes_nothing(
    tmp_path: Path, plan: StagePlan, uninterrupted: tuple[TrainResult, Any], processes: int
) -> None:
    """Nor does it whether threads or processes decode."""
    plan = replace(plan, layout=replace(plan.layout, loader_processes=processes))
    job = start(tmp_path, plan, {"at": "optimizer_step", "step": 7, "rank": 1, "action": "sigkill"})
    try:
        assert job.wait(timeout_s=250) == 0, job.tail()
        result = job.job.result()
        assert result is not None
        assert [end.exit_code for end in job.ends()] == [75, 0]
        assert result.weights_digest == uninterrupted[0].weights_digest
        assert curve(job) == uninterrupted[1]
        assert job.survivors() == []
    finally:
        job.close()


def test_a_stop_saves_the_step_and_ends_with_143(tmp_path: Path, plan: StagePlan, uninterrupted: tuple[TrainResult, Any]) -> None:
    job = start(tmp_path, plan, {"at": "data_wait", "step": 6, "rank": 1, "action": "sleep", "value": 8.0})
    try:
        until = time.monotonic() + 200
        while ((progress := job.job.progress(1)) is None or progress.step < 5) and time.monotonic() < until:
            time.sleep(0.1)
        job.supervisors[0].terminate()
        assert job.wait(timeout_s=120) == 143, job.tail()
        (end,) = job.ends()
        assert (end.kind, end.steps_lost) == ("stopped", 0)
        assert end.committed_step >= 5
        job.start()
        assert job.wait(timeout_s=200) == 0, job.tail()
        result = job.job.result()
        assert result is not None
        assert result.weights_digest == uninterrupted[0].weights_digest
        assert curve(job) == uninterrupted[1]
    finally:
        job.close()


def slow_down(process: psutil.Process, until: threading.Event, *, stopped_s: float = 0.06, running_s: float = 0.02) -> None:
    """A quarter of its time is left to a process: what a throttled or overheated machine does."""
    while not until.is_set():
        try:
            process.suspend()
            time.sleep(stopped_s)
            process.resume()
        except psutil.Error:
            return
        time.sleep(running_s)


def test_a_rank_that_gets_a_quarter_of_its_time_is_named_although_all_wait_for_it(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F12. Five windows of ten steps, of which the first may have begun before it was slow."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    plan = toy_stage(corpus, ["duration.steps=65", "checkpoint.every_steps=65"])
    job, enough = start(tmp_path, plan, entrypoint="kernels:main"), threading.Event()
    try:
        job.wait_line(r"\[rank 0\] step 1/", timeout_s=200)
        threading.Thread(target=slow_down, args=(job.rank_process(1), enough), daemon=True).start()
        assert job.wait(timeout_s=280) == 0, job.tail()
    finally:
        enough.set()
        job.close()
    named = [(event["value"]["rank"], event["step"]) for event in job.job.events(1, "rank-0") if event["name"] == "straggler"]
    assert [rank for rank, _ in named] == [1]


def test_over_the_budget_of_bad_samples_all_ranks_stop_at_the_same_step_with_the_same_list(tmp_path: Path, corpus: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(corpus.removeprefix("file://"), damaged)
    shards = list(damaged.rglob("*.tar"))
    assert shards
    for shard in shards:
        body = bytearray(shard.read_bytes())
        body[len(body) // 4 : 3 * len(body) // 4] = bytes(3 * len(body) // 4 - len(body) // 4)
        shard.write_bytes(body)
    job = start(tmp_path, toy_stage(f"file://{damaged}", ["duration.steps=9"]))
    try:
        assert job.wait(timeout_s=200) == 41, job.tail()
    finally:
        job.close()
    (end,) = job.ends()
    assert end.exit_code == 41
    last = [[line for line in job.job.lines("logs", 1, f"rank-{rank}") if "samples are bad" in line][-1] for rank in (0, 1)]
    assert last[0] == last[1]
    assert "run `stagecoach data verify`" in last[0]
