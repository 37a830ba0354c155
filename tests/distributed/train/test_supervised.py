"""Two ranks under a real supervisor: killed in mid-step, told to stop, resumed; and in the end the weights of a run never stopped."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.job import TrainResult
from stagecoach.contract.plan import StagePlan
from stagecoach.testing.supervised import SupervisedJob
from stagecoach.testing.training import toy_stage

ENTRYPOINT = "stagecoach_workloads.train:main"


@pytest.fixture(scope="module")
def plan(corpus: str) -> StagePlan:
    return toy_stage(corpus, ["duration.steps=9", "checkpoint.every_steps=3"])


def start(folder: Path, plan: StagePlan, *faults: dict[str, Any]) -> SupervisedJob:
    job = SupervisedJob(folder, {}, entrypoint=ENTRYPOINT, grace_s=90)  # time for a save on a machine that is busy
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
        yield result, curve(job)
    finally:
        job.close()


def test_a_rank_killed_in_mid_step_changes_nothing(tmp_path: Path, plan: StagePlan, uninterrupted: tuple[TrainResult, Any]) -> None:
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
