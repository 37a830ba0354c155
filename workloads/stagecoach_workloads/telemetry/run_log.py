"""`RunLog`: one call a step, and everything that watches a stage knows: heartbeat, events, TensorBoard, a line in the log."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecoach.contract.plan import StagePlan
from stagecoach.costs.hardware import HARDWARE
from stagecoach_workloads.data.work.collate import Batch
from stagecoach_workloads.telemetry.background import Background
from stagecoach_workloads.telemetry.buckets import Bucket, Buckets, seconds_since_start
from stagecoach_workloads.telemetry.event_files import EventFiles
from stagecoach_workloads.telemetry.lines import progress_line
from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.speed import Rates, Speed
from stagecoach_workloads.telemetry.stragglers import WINDOWS, Finding, Stragglers
from stagecoach_workloads.telemetry.tensorboard import FOLDER, Files, TensorBoardSink

if TYPE_CHECKING:
    from stagecoach_workloads.rank import RankContext

LINE_S = 10.0  # between two lines in the log
LINES_BYTES = 64 << 10  # that may wait
SAMPLE_CHARS = 400  # of a text, in an event
SHARES_AT_ONCE = 30  # in an event
CLOSE_S = 2.0  # how long an end waits for each sink
LONG = ("init", "restore", "evaluation")  # their seconds are told when they end; the others' with the next step


class RunLog:
    """One per rank. Only rank 0 writes scalars and lines; every rank beats and sends events of its own. Nothing here blocks or raises.

    Events: `step` (rank 0: loss, losses, grad_norm, rates, counts, taken, speed), `sample_ids` (every rank that has a hash), `validation`,
    `shares`, `samples`, `straggler` (a rank became slow, or stopped being so), `seconds` (at the end, by bucket), `telemetry_lost` (what a
    sink did not take).
    TensorBoard's tags stand in `tensorboard.py`.
    """

    def __init__(
        self,
        context: "RankContext",
        plan: StagePlan,
        *,
        steps: int,
        start_step: int,
        flops: Callable[[Sequence[Batch]], float] | None,
        tokens: int = 0,
        images: int = 0,
        restore_s: float = 0.0,
        out: int = 1,
        files: Files | None = None,
    ) -> None:
        """`flops` counts the work of one rank's batches (`counts.flops_of(plan)`). `tokens` and `images`: trained on before `start_step`.
        `restore_s`: of the time since this process began, which is init, what went into restoring before there was a log.
        `out`: the descriptor that lines go to; `files`: where TensorBoard's events go, by default $STAGECOACH_LOCAL_DIR/tensorboard."""
        self._context, self._steps, self._count_flops = context, steps, flops
        self._is_first = context.rank == 0
        self._step, self._tokens, self._images = start_step, tokens, images
        self._buckets = Buckets(init_s=max(0.0, seconds_since_start() - restore_s), restore_s=restore_s)
        self._speed = Speed(steps=steps, peak_flops=peak_flops(plan, context.world_size))
        self._out = out
        self._lines: Background[bytes] = Background("progress-lines", self._write_line, budget=LINES_BYTES)
        self._sink = TensorBoardSink(files or EventFiles(context.local_dir / FOLDER))
        self._stragglers = Stragglers(context.world_size)
        self._line_at = -math.inf
        self._told_lost = 0
        self._closed = False

    # --- what the trainer calls

    @contextmanager
    def bucket(self, name: Bucket) -> Iterator[None]:
        """Counts the block's time as `name`; a bucket opened inside pauses this one."""
        try:
            with self._buckets.bucket(name):
                yield
        finally:
            if name in LONG:
                beat = self._context.last_beat
                self._context.heartbeat(step=beat.step, phase=beat.phase, **self._seconds())

    def flops(self, batches: Sequence[Batch]) -> float:
        """The work of this rank's batches, forward and backward; 0 where nobody counts it. For `StepReport.flops_by_rank`."""
        return self._count_flops(batches) if self._count_flops is not None else 0.0

    def step(self, report: StepReport, batches: Sequence[Batch]) -> None:
        """Tells of one step."""
        self._step = report.step
        self._tokens += report.num_tokens
        self._images += report.num_images
        seconds = self._seconds()
        rates = self._speed.add(
            report.step,
            now=time.perf_counter(),
            evaluation_s=seconds["seconds_evaluation"],
            tokens=report.num_tokens,
            images=report.num_images,
            flops=self._flops_of_step(report, batches),
        )
        self._beat(report, rates, seconds)
        if report.sample_ids_hash is not None:
            self.event("sample_ids", report.sample_ids_hash, step=report.step)
        if self._is_first:
            self.event("step", step_event(report, rates), step=report.step)
            self._sink.scalars(report.step, step_scalars(report, rates) | {n.replace("_", "/", 1): v for n, v in seconds.items()})
            self._look_for_stragglers(report)
            self._say_progress(report, rates)

    def validation(self, step: int, losses: Mapping[str, float]) -> None:
        """Tells the losses of the fixed validation set, by category."""
        if self._is_first:
            self.event("validation", plain_numbers(losses), step=step)
            self._sink.scalars(step, {f"validation/{name}": value for name, value in losses.items()})
            self._say(f"step {step} validation: {', '.join(f'{name} {value:.4g}' for name, value in sorted(losses.items()))}")

    def nothing_to_do(self, step: int) -> None:
        """Tells that training had come to its end before this attempt (B48)."""
        self.event("nothing_to_do", {"step": step, "steps": self._steps}, step=step)
        if self._is_first:
            self._say(f"nothing to do: step {step} of {self._steps} is committed already")

    def rewound(self, step: int, *, tokens: int, images: int, why: str = "") -> None:
        """Training is back at `step`: what was trained on after it counts no more. `why`: a sentence for whoever reads the log."""
        self._step, self._tokens, self._images = step, tokens, images
        self._speed.rewound()
        self._context.heartbeat(step=step, phase="restore", tokens=tokens, images=images)
        if self._is_first and why:
            self._say(f"back at step {step}, its data since is left out: {why}")

    def shares(self, step: int, report: Mapping[str, Any]) -> None:
        """Tells what was consumed beside what the mixture asks for (`ShareMeter.report`): achieved and wanted by source, kind, category."""
        if not self._is_first:
            return
        for part in share_events(report):
            self.event("shares", part, step=step)
        groups = {group: report[group] for group in ("source", "kind", "category")}
        self._sink.scalars(step, {f"share/{g}/{name}": pair[0] for g, pairs in groups.items() for name, pair in pairs.items()})
        if report["off"]:
            self._say(f"step {step}: shares of {', '.join(report['off'])} are further from the mixture than by chance")

    def samples(self, step: int, images: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
        """Shows images (HWC uint8; `drawing.draw_boxes` draws on them) and texts in TensorBoard; the texts are an event too."""
        if self._is_first:
            for name, text in texts.items():
                self.event("samples", {name: text[:SAMPLE_CHARS]}, step=step)
            for name, image_HWC in images.items():
                self._sink.image(step, f"samples/{name}", image_HWC)
            for name, text in texts.items():
                self._sink.text(step, f"samples/{name}", text)

    def event(self, name: str, value: Any, *, step: int | None = None) -> None:
        """One line in this rank's events."""
        self._context.event(name, value, step=self._step if step is None else step)

    def close(self) -> None:
        """Sends what waits, for a moment. Idempotent."""
        if self._closed:
            return
        self._closed = True
        beat = self._context.last_beat
        seconds = self._seconds()
        self._context.heartbeat(step=beat.step, phase=beat.phase, **seconds)
        self.event("seconds", {name.removeprefix("seconds_"): round(value, 3) for name, value in seconds.items()})
        self._sink.background.flush(CLOSE_S)
        self._tell_lost()
        self._lines.flush(CLOSE_S)

    def flush(self, timeout_s: float) -> bool:
        """Waits until every sink took what it was given; False where one did not within `timeout_s`."""
        is_written = self._sink.background.flush(timeout_s)
        return self._lines.flush(timeout_s) and is_written

    @property
    def lost(self) -> int:
        """Entries that TensorBoard or the log did not take."""
        return self._sink.background.lost + self._lines.lost

    # --- inside

    def _seconds(self) -> dict[str, float]:
        return {f"seconds_{name}": value for name, value in self._buckets.seconds().items()}

    def _flops_of_step(self, report: StepReport, batches: Sequence[Batch]) -> float | None:
        """Of all ranks. Where only our own are known, the others' are taken as equal, which the data plan sees to over a window."""
        if report.flops_by_rank is not None:
            return sum(report.flops_by_rank)
        if self._count_flops is None or not self._is_first:
            return None
        return self._count_flops(batches) * self._context.world_size

    def _beat(self, report: StepReport, rates: Rates, seconds: Mapping[str, float]) -> None:
        known = {"tokens_per_s": rates.tokens_per_s, "images_per_s": rates.images_per_s, "mfu": rates.mfu, "eta_s": rates.eta_s}
        self._context.heartbeat(
            step=report.step,
            phase="train",
            steps=self._steps,
            tokens=self._tokens,
            images=self._images,
            loss=report.loss,
            **{name: value for name, value in known.items() if value is not None},
            **seconds,
        )

    def _look_for_stragglers(self, report: StepReport) -> None:
        if report.seconds_by_rank is None:
            return
        for finding in self._stragglers.add(report.seconds_by_rank, report.flops_by_rank):
            node = finding.rank // self._context.ranks_per_node
            self.event("straggler", {"rank": finding.rank, "node": node, "ratio": round(finding.ratio, 3), "slow": finding.is_slow})
            self._say(straggler_line(finding, node, attempt=self._context.attempt))

    def _say_progress(self, report: StepReport, rates: Rates) -> None:
        now = time.monotonic()
        if now - self._line_at >= LINE_S or report.step == self._steps or not report.taken:  # a skipped step is always told
            self._line_at = now
            self._say(progress_line(report, rates, steps=self._steps))
            self._tell_lost()

    def _tell_lost(self) -> None:
        """Says what TensorBoard did not get, when there is more of it than was said."""
        sink = self._sink.background
        if sink.lost > self._told_lost:
            self._told_lost = sink.lost
            why = sink.last_error or "the disk takes them too slowly"
            self.event("telemetry_lost", {"dropped": sink.dropped, "failed": sink.failed, "why": why})
            self._say(f"TensorBoard lost {sink.lost} entries so far: {why}; training goes on, and events hold every step")

    def _say(self, text: str) -> None:
        line = text.encode() + b"\n"
        self._lines.offer(line, len(line))

    def _write_line(self, line: bytes) -> None:
        """In a thread, and past Python's streams: whoever else prints must not wait for this either."""
        while line:
            line = line[os.write(self._out, line) :]


def peak_flops(plan: StagePlan, ranks: int) -> float | None:
    """Dense FLOP/s of all ranks' devices by their data sheets; None for hardware that costs do not know."""
    entry = HARDWARE.get(plan.resources.hardware)
    return entry.peak_flops * ranks if entry is not None else None


def step_event(report: StepReport, rates: Rates) -> dict[str, Any]:
    """The value of a `step` event. What is not finite is a word, so that the line stays JSON."""
    told: dict[str, Any] = {
        "loss": _plain(report.loss),
        "losses": plain_numbers(report.losses),
        "grad_norm": _plain(report.grad_norm),
        "rates": plain_numbers(report.rates),
        "num_targets": report.num_targets,
        "num_tokens": report.num_tokens,
        "num_images": report.num_images,
        "taken": report.taken,
    }
    if rates.tokens_per_s is not None:
        told["tokens_per_s"] = round(rates.tokens_per_s, 1)
    if rates.mfu is not None:
        told["mfu"] = round(rates.mfu, 4)
    return told


def share_events(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A report of shares in the same form, in parts of which each fits a line of events: a stage may have hundreds of categories."""
    for group in ("source", "kind", "category"):
        names = sorted(report[group])
        for first in range(0, len(names), SHARES_AT_ONCE):
            some = names[first : first + SHARES_AT_ONCE]
            told = {name: report[group][name] for name in some}
            yield {"steps": report["steps"], group: told, "off": [name for name in some if name in report["off"]]}


def step_scalars(report: StepReport, rates: Rates) -> dict[str, float]:
    """A step's points by TensorBoard tag."""
    points = {
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "taken": float(report.taken),
        "batch/targets": report.num_targets,
        "batch/tokens": report.num_tokens,
        "batch/images": report.num_images,
        **{f"loss/{name}": value for name, value in report.losses.items()},
        **{f"rate/{name}": value for name, value in report.rates.items()},
    }
    speed = {"tokens_per_s": rates.tokens_per_s, "images_per_s": rates.images_per_s, "step_s": rates.step_s, "mfu": rates.mfu}
    return points | {f"speed/{name}": value for name, value in speed.items() if value is not None}


def straggler_line(finding: Finding, node: int, *, attempt: int) -> str:
    """What a person should know and where to look."""
    if not finding.is_slow:
        return f"rank {finding.rank} (node {node}) is no longer slow: {finding.ratio:.2f} x the median rank's time for the same work"
    return (
        f"rank {finding.rank} (node {node}) is slow: {finding.ratio:.2f} x the median rank's time for the same work, {WINDOWS} windows "
        f"in a row; its machine is in attempts/{attempt}/nodes/{node}.json"
    )


def plain_numbers(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Sorted, for JSON."""
    return {name: _plain(value) for name, value in sorted(numbers.items())}


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
