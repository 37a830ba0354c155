"""What a real job with a real supervisor leaves for those who watch: TensorBoard files, the ledger of seconds, events."""

import warnings
from pathlib import Path

import pytest

from stagecoach.testing.supervised import SupervisedJob

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the reader's own dependencies
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .telling_job import KILLED_AT, STEPS


def steps_in(folder: Path, tag: str) -> list[int]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accumulator.Reload()
    if tag not in accumulator.Tags()["scalars"]:
        return []
    return [point.step for point in accumulator.Scalars(tag)]


def test_a_killed_rank_and_the_attempt_after_it_leave_curves_seconds_and_events(tmp_path: Path) -> None:
    """Each attempt has TensorBoard files of its own, whole up to the kill; `end.json` holds seconds that sum to the wall time."""
    job = SupervisedJob(tmp_path, {}, entrypoint="telling_job:main")
    try:
        job.start(environment={"PYTHONPATH": str(Path(__file__).parent)})
        assert job.wait() == 0, job.tail()
        assert job.leftovers() == []
    finally:
        job.close()
    published = tmp_path / "job" / "tensorboard"
    assert steps_in(published / "attempt-1", "loss") == list(range(1, KILLED_AT + 1))
    assert steps_in(published / "attempt-2", "speed/mfu") == list(range(2, STEPS + 1))
    first, second = job.job.attempt_end(1), job.job.attempt_end(2)
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind) == ("crashed", "done")
    assert second.seconds["compute"] >= STEPS * 0.01
    assert second.seconds["data_wait"] >= STEPS * 0.002
    events = list(job.job.events(2, "rank-0"))
    assert [event["step"] for event in events if event["name"] == "step"] == list(range(1, STEPS + 1))
    told = next(event["value"] for event in events if event["name"] == "seconds")
    assert sum(told.values()) == pytest.approx(sum(second.seconds.values()), rel=0.01)
    lines = list(job.job.lines("logs", 2, "rank-0"))
    assert any(line.startswith(f"step {STEPS}/{STEPS}  loss") for line in lines)
