"""What a stage tells on its way, in whole attempts: shares of the mixture, samples, where the data's steps begin."""

from collections.abc import Callable
from typing import Any

import pytest

from stagecoach.errors import StorageError
from stagecoach.testing.training import toy_stage
from stagecoach_workloads.data.plan.states import states_key
from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.run_log import RunLog
from stagecoach_workloads.train import feed

Train = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, in what runs as a process of its own otherwise


def test_on_the_way_it_shows_shares_samples_and_keeps_the_table_of_states(
    train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SHARES_EVERY_STEPS", 3)
    monkeypatch.setattr(feed, "EVERY_STEPS", 4)
    reports: list[StepReport] = []
    step = RunLog.step
    monkeypatch.setattr(RunLog, "step", lambda log, report, batches: (reports.append(report), step(log, report, batches)))
    shown: list[dict[str, Any]] = []
    samples = RunLog.samples
    monkeypatch.setattr(RunLog, "samples", lambda log, step, images, texts: (shown.append(images), samples(log, step, images, texts)))
    job = train(toy_stage(corpus, ["duration.steps=5", "evaluation.validate_every_steps=5", "evaluation.validation_samples=32"]))
    job.attempt()
    (images,) = shown
    assert "captions" in {name.split("/")[0] for name in images}
    assert all((image.dtype, image.shape[2]) == ("uint8", 3) for image in images.values())
    by_source = [report for report in job.told("shares") if "source" in report]
    assert [report["steps"] for report in by_source] == [3, 2]
    assert all(sum(pair[0] for pair in report["source"].values()) == pytest.approx(1) for report in by_source)
    texts = {name: text for sample in job.told("samples") for name, text in sample.items()}
    assert {name.split("/")[0] for name in texts} == {"captions", "interleaved"}
    assert all("\ntarget: " in text and "\nmodel: " in text for text in texts.values())
    assert job.job.store.exists(states_key("pretrain"))
    assert all(report.seconds_by_rank[0] > 0 and report.flops_by_rank[0] > 0 for report in reports)
    seconds = job.told("seconds")[0]
    assert seconds["evaluation"] > 0


def test_a_table_of_states_that_cannot_be_written_is_told_and_no_more(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise StorageError("the bucket is full")

    monkeypatch.setattr(feed, "EVERY_STEPS", 2)
    monkeypatch.setattr(feed, "write_state_table", refuse)
    job = train(toy_stage(corpus, ["duration.steps=2"]))
    job.attempt()
    assert job.told("data_states_failed") == ["the bucket is full"]
