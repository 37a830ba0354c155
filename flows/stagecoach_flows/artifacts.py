"""Publishes Prefect artifacts from a thread of its own: reading the bucket and calling Prefect never hold up the watching of a stage.

Nothing here raises: a Prefect server that is gone is told once in the log, and asked again later.
"""

import contextvars
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from loguru import logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from stagecoach.cli.watch_state import read_losses
from stagecoach.stages.pipeline import PreparedPipeline
from stagecoach_flows.drawing import as_data_url, links_of, loss_plot, says_of, stage_rows, summary_markdown
from stagecoach_flows.surroundings import Outcome

EVERY_S = 10.0
CLOSE_S = 15.0  # waited at the end for each that is left
PROGRESS_EVENT, QUEUED_EVENT, ENDED_EVENT = "stagecoach.stage.progress", "stagecoach.stage.waits", "stagecoach.stage.ended"


@dataclass
class _Told:
    """What Prefect was told of one stage."""

    progress_id: UUID | None = None
    rows: list[dict[str, str]] = field(default_factory=list)
    drawn: tuple[int, int] = (0, 0)  # attempt and newest step of the loss plot
    step: int = -1
    waits: bool = False
    linked: bool = False


class Publisher:
    """Told of every look at a stage; publishes at most every EVERY_S. Outside of a Prefect run it does nothing."""

    def __init__(self, prepared: PreparedPipeline) -> None:
        self._prepared = prepared
        self._told: dict[str, _Told] = {}
        self._asked: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=4)
        self._thread: threading.Thread | None = None
        self._looked_at, self._is_failing = float("-inf"), False
        self._published = 0

    def poll(self, stage: str, *, at_once: bool = False) -> None:
        """The stage may have moved. Returns at once."""
        now = time.monotonic()
        if not at_once and now - self._looked_at < EVERY_S:
            return
        self._looked_at = now
        self._ask(lambda: self._publish(stage, is_last=at_once))

    def close(self, outcome: Outcome) -> None:
        """The summary, and the end of the thread, as soon as Prefect took everything; a server that hangs is not waited for."""
        trouble = f"{outcome.error}" if outcome.error is not None else ""
        self._ask(lambda: self._summary(outcome, trouble), wait_s=CLOSE_S)
        if self._thread is None:
            return
        try:
            self._asked.put(None, timeout=CLOSE_S)
        except queue.Full:
            pass
        before = -1
        while self._thread.is_alive() and self._published > before:
            before = self._published
            self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("Prefect did not take the last artifacts of run {}", self._prepared.run.run_id)

    def _ask(self, action: Callable[[], None], *, wait_s: float = 0.0) -> None:
        if FlowRunContext.get() is None and TaskRunContext.get() is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prefect-artifacts", daemon=True)
            self._thread.start()
        context = contextvars.copy_context()
        try:
            self._asked.put(lambda: context.run(action), block=wait_s > 0, timeout=wait_s or None)
        except queue.Full:
            pass  # Prefect is slow; the next look tells more

    def _work(self) -> None:
        while (action := self._asked.get()) is not None:
            try:
                action()
                self._is_failing = False
            except Exception as error:  # whatever Prefect, its server or the bucket raise: an artifact is only for looking at
                if not self._is_failing:
                    logger.warning("Prefect artifacts cannot be published just now: {}: {}", type(error).__name__, error)
                self._is_failing = True
            self._published += 1

    def _publish(self, stage: str, *, is_last: bool) -> None:
        prepared, told = self._prepared, self._told.setdefault(stage, _Told())
        folder = prepared.runs.stage(prepared.run, stage)
        numbers = folder.attempt_numbers()
        progress = folder.progress(numbers[-1]) if numbers else None
        resource = {"prefect.resource.id": f"stagecoach.stage.{prepared.run.run_id}.{stage}", "prefect.resource.name": stage}
        if progress is None and not told.waits:
            told.waits = True
            emit_event(QUEUED_EVENT, resource=resource)
        if progress is not None:
            if progress.step != told.step:
                told.step = progress.step
                emit_event(PROGRESS_EVENT, resource=resource, payload={"step": progress.step, "steps": progress.steps})
            share = 100.0 * min(1.0, progress.step / progress.steps) if progress.steps else 0.0
            if told.progress_id is None:
                told.progress_id = progress_artifact(share, self._key(stage, "progress"), says_of(progress))
            else:
                update_progress_artifact(told.progress_id, share, description=says_of(progress))
        if is_last:
            emit_event(ENDED_EVENT, resource=resource)
        if not told.linked:
            for text, uri in links_of(prepared, folder).items():
                create_link_artifact(uri, link_text=text, key=self._key(stage, text))
            told.linked = True
        rows = stage_rows(prepared)
        if rows != told.rows:
            create_table_artifact([*rows], key=self._key("stages"), description="Stages and their attempts")
            told.rows = rows
        if numbers:
            self._plot(stage, told, read_losses(folder, numbers[-1]), attempt=numbers[-1], is_last=is_last)

    def _plot(self, stage: str, told: _Told, losses: dict[int, float], *, attempt: int, is_last: bool) -> None:
        """Drawn anew when it reaches a fiftieth further, with a new attempt and at the end: every picture stays in Prefect's database."""
        if len(losses) < 2:
            return
        newest, (before, reached) = max(losses), told.drawn
        if attempt == before and newest - reached < (1 if is_last else max(1, reached // 50)):
            return
        told.drawn = (attempt, newest)
        plot = loss_plot(losses, f"{self._prepared.run.run_id} {stage}: loss by step")
        description = f"Loss by step, attempt {attempt} up to step {newest:,}"
        create_image_artifact(as_data_url(plot), key=self._key(stage, "loss"), description=description)

    def _summary(self, outcome: Outcome, trouble: str) -> None:
        text = summary_markdown(self._prepared, outcome.results, trouble)
        create_markdown_artifact(text, key=self._key("summary"), description="What the run came to")

    def _key(self, *parts: str) -> str:
        """Lower-case letters, digits and dashes, as Prefect wants it."""
        return re.sub(r"[^a-z0-9]+", "-", "-".join((self._prepared.run.run_id, *parts)).lower()).strip("-")


def progress_artifact(share: float, key: str, description: str) -> UUID:
    """A new progress bar, 0 to 100. Called outside of an event loop, where Prefect's function answers at once."""
    made = create_progress_artifact(share, key=key, description=description)
    assert isinstance(made, UUID)
    return made
