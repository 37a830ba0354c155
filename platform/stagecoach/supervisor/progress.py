"""Heartbeats become `progress.json`, and what `/metrics` shows."""

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping

from stagecoach.contract.job import Progress
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.local import Heartbeat
from stagecoach.log import logger
from stagecoach.supervisor.claims import now

EVERY_S = 1.0  # the contract says 2: half of it leaves room for a slow bucket
_BUCKET = "seconds_"


def build_progress(attempt: int, beats: Mapping[int, Heartbeat], *, committed_step: int, first_step: int) -> Progress:
    """What this node's ranks say: the step all have reached, the first rank's numbers."""
    first = beats[min(beats)] if beats else Heartbeat(step=first_step)
    numbers = {name: value for name, value in first.numbers.items() if math.isfinite(value)}
    return Progress(
        attempt=attempt,
        heartbeat=sum(beat.counter for beat in beats.values()),
        step=min((beat.step for beat in beats.values() if beat.counter), default=first_step),
        steps=int(numbers.get("steps", 0)),
        phase=first.phase,
        tokens=int(numbers.get("tokens", 0)),
        images=int(numbers.get("images", 0)),
        loss=numbers.get("loss"),
        tokens_per_s=numbers.get("tokens_per_s"),
        mfu=numbers.get("mfu"),
        eta_s=numbers.get("eta_s"),
        committed_step=max([committed_step, *(int(beat.numbers.get("committed_step", 0)) for beat in beats.values())]),
        seconds={name.removeprefix(_BUCKET): value for name, value in numbers.items() if name.startswith(_BUCKET)},
        at=now(),
    )


class ProgressWriter:
    """Publishes the newest progress at most once a second, and never two at a time; a bucket that fails is tried with the next one."""

    def __init__(self, job: JobFolder) -> None:
        self._job = job
        self._task: asyncio.Task[None] | None = None
        self._written_at = -math.inf
        self._heartbeat = -1
        self._failing = False

    def offer(self, progress: Progress, monotonic_s: float) -> None:
        """Writes it unless nothing moved, it is too soon, or the last one is still on its way."""
        is_busy = self._task is not None and not self._task.done()
        if is_busy or progress.heartbeat == self._heartbeat or monotonic_s - self._written_at < EVERY_S:
            return
        self._heartbeat, self._written_at = progress.heartbeat, monotonic_s
        self._task = asyncio.create_task(self._write(progress))

    async def finish(self, progress: Progress, timeout_s: float) -> None:
        """Writes the last one, if the bucket takes it in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._task is not None:
                    await asyncio.shield(self._task)
                await self._write(progress)

    async def _write(self, progress: Progress) -> None:
        started = time.monotonic()
        try:
            await asyncio.to_thread(self._job.write_progress, progress)
        except Exception as error:  # progress is for readers; a bucket that fails must not stop a job
            if not self._failing:
                logger.warning(f"progress does not reach the bucket: {error}")
            self._failing = True
            return
        if self._failing:
            logger.info(f"progress reaches the bucket again (in {time.monotonic() - started:.1f} s)")
        self._failing = False
