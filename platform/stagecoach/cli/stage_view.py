"""What a person who waits for a stage sees on stderr: one bar that moves on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from stagecoach.contract.job import AttemptEnd, Progress
from stagecoach.contract.launch import JobState
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan, Steps
from stagecoach.errors import StagecoachError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LOOK_S = 1.0  # progress.json is written every 2 s
LINE_S = 10.0  # without a terminal
CANCEL_WITHIN_S = 3.0


class StageView:
    """Says on stderr how a stage goes. A stderr that is gone never keeps us from watching."""

    def __init__(self, run_id: str, plan: StagePlan) -> None:
        self.title = f"{run_id} {plan.name}"
        self.steps = plan.duration.steps if isinstance(plan.duration, Steps) else 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._phase, self._looked_at, self._said_at = "", 0.0, 0.0
        self._ended: set[int] = set()

    def __enter__(self) -> "StageView":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.steps, says="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def state(self, state: JobState) -> None:
        """The launcher's phase changed."""
        self._phase = f"{state.phase.lower()}{f' ({state.reason})' if state.reason else ''}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, says=self._phase)
        else:
            self._say(self._phase)

    def poll(self, folder: JobFolder) -> None:
        """Looks at the newest attempt, at most once a second. What cannot be read just now is looked at later."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            numbers = folder.attempt_numbers()
            for number in numbers[-2:]:
                self._tell_end(number, folder)
            progress = folder.progress(numbers[-1]) if numbers else None
        except StagecoachError:
            return
        if progress is not None:
            self._show(progress, now)

    def wants_cancel(self) -> bool:
        """After Ctrl-C: True when it is pressed once more within 3 s."""
        self._say(f"Ctrl-C once more within {CANCEL_WITHIN_S:g} s cancels the job; else it goes on")
        try:
            time.sleep(CANCEL_WITHIN_S)
        except KeyboardInterrupt:
            return True
        return False

    def _tell_end(self, number: int, folder: JobFolder) -> None:
        if number in self._ended:
            return
        end: AttemptEnd | None = folder.attempt_end(number)
        if end is not None:
            self._ended.add(number)
            lost = f", {end.steps_lost} steps lost" if end.steps_lost else ""
            self._say(f"attempt {number}: {end.kind.replace('_', ' ')} at step {end.step}{lost}{f': {end.message}' if end.message else ''}")

    def _show(self, progress: Progress, now: float) -> None:
        says = f"attempt {progress.attempt}  {progress.phase}{numbers_of(progress)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.step, total=progress.steps or self.steps, says=says)
        elif now - self._said_at >= LINE_S:
            self._said_at = now
            self._say(f"step {progress.step}/{progress.steps or self.steps}  {says}")

    def _say(self, text: str) -> None:
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                click.echo(f"{self.title}: {text}", err=True)
        except OSError:
            pass


def numbers_of(progress: Progress) -> str:
    """`  loss 2.31  3,210 tokens/s  committed 25  1:20 left`, of what is known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.mfu:
        parts.append(f"MFU {progress.mfu:.0%}")
    if progress.committed_step:
        parts.append(f"committed {progress.committed_step}")
    if progress.eta_s is not None:
        parts.append(f"{int(progress.eta_s) // 60}:{int(progress.eta_s) % 60:02d} left")
    return "".join(f"  {part}" for part in parts)
