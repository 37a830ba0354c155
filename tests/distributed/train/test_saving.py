"""Saves that come to nothing, in whole attempts: what a stop, a rewind and the last step make of them."""

from collections.abc import Callable
from typing import Any

import pytest

from stagecoach.testing.training import toy_stage
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.errors import SaveFailed, SaveSkipped
from stagecoach_workloads.checkpoints.staging import StagingBuffer
from stagecoach_workloads.rank import Stopped
from stagecoach_workloads.train.guard import GuardSettings
from stagecoach_workloads.train.loop import Run

from .faults import at_step, order

Train = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, in what runs as a process of its own otherwise


def without_room(monkeypatch: pytest.MonkeyPatch, *steps: int) -> list[int]:
    """The copy to host memory of the saves that these steps start finds no room. Returns the steps that were tried."""
    original, tried = StagingBuffer.copy, []
    current: dict[str, int] = {}
    save = Checkpoints.save

    def noting(self: Checkpoints, step: int, state: Any) -> None:
        current["step"] = step
        save(self, step, state)

    def copy(self: StagingBuffer, *arguments: Any) -> None:
        tried.append(current["step"])
        if current["step"] in steps and tried.count(current["step"]) == 1:
            raise MemoryError("no room")
        original(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", noting)
    monkeypatch.setattr(StagingBuffer, "copy", copy)
    return tried


def test_a_stop_after_a_skipped_save_is_a_stop_and_saves(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_room(monkeypatch, 2)
    job = train(toy_stage(corpus, ["duration.steps=50", "checkpoint.every_steps=2"]))
    at_step(monkeypatch, 3, lambda run: run.context.request_stop())
    with pytest.raises(Stopped) as stopped:
        job.attempt()
    assert stopped.value.committed_step == 3
    assert len(job.told("checkpoint_skipped")) == 1


@pytest.mark.parametrize("failed_before", [True, False])
def test_a_stop_whose_save_fails_is_a_stop_all_the_same(
    train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch, failed_before: bool
) -> None:
    job = train(toy_stage(corpus, ["duration.steps=50", "checkpoint.every_steps=50"]))

    def stop(run: Run) -> None:
        if failed_before:
            run.saving.remembering(lambda: 1 / 0)
        else:
            monkeypatch.setattr(Checkpoints, "save", lambda *_arguments: 1 / 0)
        run.context.request_stop()

    at_step(monkeypatch, 2, stop)
    with pytest.raises(Stopped) as stopped:
        job.attempt()
    assert stopped.value.committed_step == 0
    assert job.told("save_failed") == ["division by zero"]


def test_a_rewind_past_a_skipped_save_puts_the_next_one_off(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 4 is skipped, step 5 goes wrong, training is back at 2: step 4 has a folder already, so 5 is saved."""
    tried = without_room(monkeypatch, 4)
    at_step(monkeypatch, 0, lambda run: setattr(run.state.guard, "settings", GuardSettings(most_skips=0)))
    order(monkeypatch, {"at": "forward", "step": 5, "action": "nan"})
    original = Run.rewind

    def rewind(run: Run, bad_step: int) -> None:
        original(run, bad_step)
        monkeypatch.delenv("STAGECOACH_TEST_FAULTS")

    monkeypatch.setattr(Run, "rewind", rewind)
    job = train(toy_stage(corpus, ["duration.steps=7", "checkpoint.every_steps=2"]))
    context = job.attempt()
    assert job.told("rewound")[0]["to_step"] == 2
    assert tried == [2, 4, 5, 6, 7]
    result = job.job.result()
    assert (result.step, result.tokens) == (7, context.last_beat.numbers["tokens"])  # steps made twice count once


def test_the_last_step_s_save_is_made_up_for_by_another_attempt(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = train(toy_stage(corpus, ["duration.steps=4", "checkpoint.every_steps=3"]))
    with monkeypatch.context() as patch:
        without_room(patch, 4)
        with pytest.raises(SaveSkipped, match="step 4 was not saved"):
            job.attempt()
    assert job.job.result() is None
    job.attempt()
    assert job.told("started")[0]["from"] == "step 3"
    assert job.job.result().step == 4


def test_a_last_step_that_was_saved_before_a_rewind_is_left_to_the_next_attempt(
    train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train(toy_stage(corpus, ["duration.steps=4", "checkpoint.every_steps=3"]))
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda run: run.saving.begun.add(4))
        with pytest.raises(SaveFailed, match="the next attempt saves it"):
            job.attempt()
    job.attempt()
    assert job.job.result().step == 4


def test_a_stop_during_validation_cuts_it_short_and_saves_the_step(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Run._should_leave_evaluation

    def asked_to_stop(run: Run) -> bool:
        run.context.request_stop()
        return original(run)

    monkeypatch.setattr(Run, "_should_leave_evaluation", asked_to_stop)
    settings = ["duration.steps=50", "checkpoint.every_steps=50", "evaluation.validate_every_steps=2", "evaluation.validation_samples=32"]
    job = train(toy_stage(corpus, settings))
    with pytest.raises(Stopped) as stopped:
        job.attempt()
    assert stopped.value.committed_step == 2
    assert job.told("validation") == []


def test_a_stop_while_the_model_is_compiled_does_not_wait_for_it(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is stopped at work; what torch makes of an error raised inside of it must still be a stop."""

    def compiler(*_arguments: object, **_named: object) -> None:
        job.context.request_stop()

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compiler)
    job = train(toy_stage(corpus, ["layout.compile=true"]))
    with pytest.raises(Stopped) as stopped:
        job.attempt()
    assert stopped.value.committed_step == 0
