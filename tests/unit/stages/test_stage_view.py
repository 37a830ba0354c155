"""What a person who waits for a stage sees: plain lines where there is no terminal, one bar that moves with an ETA where there is one."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagecoach.cli.stage_view import StageView, numbers_of
from stagecoach.constants import Phase
from stagecoach.contract.job import Progress
from stagecoach.contract.launch import JobState
from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.builders import TIME, attempt_end, attempt_start, stage_plan


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder.open(f"file://{tmp_path}/job")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """looks(s): so many seconds later, on the view's clock."""
    now = [1000.0]
    monkeypatch.setattr("stagecoach.cli.stage_view.time.monotonic", lambda: now[0])

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def progress(step: int, **changes: Any) -> Progress:
    told = {"loss": 2.3125, "tokens_per_s": 3210.4, "mfu": 0.412, "eta_s": 80.0, "committed_step": 25}
    return Progress(attempt=1, heartbeat=step, step=step, steps=200, phase="train", at=TIME, **(told | changes))


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_for_each_end(
    job: JobFolder, looks: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    job.claim_attempt(attempt_start(attempt=1))
    with StageView("r1", stage_plan()) as view:
        view.state(JobState(phase=Phase.QUEUED, reason="quota of team-a is used up"))
        for step in range(30, 53):  # a look a second
            job.write_progress(progress(step))
            view.poll(job)
            looks(1.0)
        job.end_attempt(attempt_end(attempt=1, kind="crashed", exit_code=75, step=52, steps_lost=2, message="rank 1: boom"))
        view.poll(job)
        looks(1.0)
        view.poll(job)  # an end is told once
    assert capsys.readouterr().err.splitlines() == [
        "r1 pretrain: queued (quota of team-a is used up)",
        *(
            f"r1 pretrain: step {step}/200  attempt 1  train  loss 2.312  3,210 tokens/s  MFU 41%  committed 25  1:20 left"
            for step in (30, 40, 50)
        ),
        "r1 pretrain: attempt 1: crashed at step 52, 2 steps lost: rank 1: boom",
    ]


def test_on_a_terminal_one_bar_shows_step_loss_and_time_left(
    job: JobFolder, looks: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    job.claim_attempt(attempt_start(attempt=1))
    with StageView("r1", stage_plan()) as view:
        looks(2.0)
        job.write_progress(progress(150))
        view.poll(job)
        assert view._bar is not None
        (task,) = view._bar.tasks
        assert (task.completed, task.total) == (150, 200)
        view._bar.refresh()
    shown = terminal.getvalue()
    for part in ("r1 pretrain", "150/200", "loss 2.312", "3,210 tokens/s", "1:20 left"):
        assert part in shown, shown


def test_a_bucket_that_fails_and_a_stderr_that_is_gone_keep_nobody_from_watching(
    job: JobFolder, looks: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    job.claim_attempt(attempt_start(attempt=1))
    job.store.publish("attempts/1/progress.json", b"{}")  # cannot be read
    with StageView("r1", stage_plan()) as view:
        view.poll(job)
        monkeypatch.setattr(sys, "stderr", Gone())
        view.state(JobState(phase=Phase.RUNNING))


def test_what_is_not_known_is_left_out() -> None:
    assert numbers_of(progress(1, loss=None, tokens_per_s=None, mfu=None, eta_s=None, committed_step=0)) == ""
    assert numbers_of(progress(1, eta_s=3661.0)).endswith("61:01 left")
