"""`Checkpoints`: what the trainer calls."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from loguru import logger

import stagecoach.storage.errors as storage_errors
from stagecoach import __version__
from stagecoach.checkpoints import CheckpointRef, checkpoint_ref, latest
from stagecoach.contract.checkpoint import CheckpointPart
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import to_plain
from stagecoach.errors import StagecoachError
from stagecoach_workloads.checkpoints.commit import say_that_it_is_skipped
from stagecoach_workloads.checkpoints.errors import Fenced, SaveFailed, SaveSkipped
from stagecoach_workloads.checkpoints.layout import Layout, build_layout
from stagecoach_workloads.checkpoints.link import SaverLink
from stagecoach_workloads.checkpoints.loading import plan_load
from stagecoach_workloads.checkpoints.messages import LayoutOrder, Report, SaveOrder, SaverJob
from stagecoach_workloads.checkpoints.reading import CheckpointReader, as_json, own_values
from stagecoach_workloads.checkpoints.restoring import check_fingerprints, restore_newest
from stagecoach_workloads.checkpoints.settings import CheckpointSettings
from stagecoach_workloads.checkpoints.staging import StagingBuffer
from stagecoach_workloads.checkpoints.state import PARTS, CheckpointState, LoadedValues
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.testing.phases import reached

POLL_S = 0.05
TELLING_S = 10.0  # at the end, for a word to the other ranks
HARMLESS = (OSError, MemoryError)  # of the copy to host memory: no room. This save is skipped, training goes on


class Checkpoints:
    """Saves and loads the state of one rank of one attempt. Make it, and use it, on the main thread.

    Every rank calls `save` at the same steps, and `restore` together. What goes wrong in the background is raised by the next call of
    `save`, `before_update` or `wait`: SaveFailed, Fenced or a StorageError. A copy that finds no room in host memory is no reason to
    stop: that save is skipped on all ranks, said in the log and as event `checkpoint_skipped`, until it happens too often in a row.
    """

    def __init__(
        self, context: RankContext, *, identity: str, mesh: Mapping[str, int], fingerprints: Mapping[str, str],
        keep: int, keep_every_steps: int | None, settings: CheckpointSettings | None = None,
    ) -> None:  # fmt: skip
        """The saving process starts with `restore`, or the first `save`. Raises OSError when settings.staging_dir cannot be written."""
        self.committed_step = 0
        self._context, self._identity, self._mesh = context, identity, dict(mesh)
        self._fingerprints, self._settings = dict(fingerprints), settings or CheckpointSettings()
        self._job = JobFolder.open(context.job.uri, settings=self._settings.store)
        self._buffer = StagingBuffer(self._settings.staging_dir, self._settings.staging_threads)
        self._changed = threading.Condition()
        self._staged = threading.Event()
        self._staged.set()
        self._stager: threading.Thread | None = None
        self._preparing: threading.Thread | None = None
        self._telling: threading.Thread | None = None
        self._in_flight: int | None = None  # the step being saved
        self._began = 0.0
        self._saved_step: int | None = None
        self._seconds: float | None = None
        self._error: StagecoachError | None = None
        self._skips, self._skip_reason = 0, ""
        self._layout: Layout | None = None
        self._reports: deque[Report] = deque()
        self._keep, self._keep_every_steps = keep, keep_every_steps
        self._link: SaverLink | None = None
        self._is_idle = True  # the saving process

    # --- saving

    def save(self, step: int, state: CheckpointState) -> None:
        """Starts to save `state` as of `step` and returns; nothing of it may change before the next `before_update` returned.

        The same step again is a no-op. While a save is in flight this waits for it. Raises what the last save ran into.
        """
        self._poll()
        if step in (self._saved_step, self.committed_step):
            return
        shared, own = as_json(state.shared, "shared values"), as_json(state.own, "this rank's own values")
        self._wait_while_in_flight(None)
        self._poll()
        link = self._start_saver()
        reached("staging", step)
        self._context.event("phase", "staging", step=step)
        self._saved_step = self._in_flight = step
        self._began = time.monotonic()
        self._is_idle = False
        self._staged.clear()
        after = _ready_event()
        self._stager = threading.Thread(
            target=self._stage, args=(link, step, state, shared, own, after), name="checkpoint-stage", daemon=True
        )
        self._stager.start()

    def before_update(self) -> float:
        """The gate before optimizer.step(): waits until the running save has its copy. Returns the seconds waited. Raises as `save`."""
        began = time.monotonic()
        self._staged.wait()
        waited = time.monotonic() - began
        self._poll()
        self._start_saver()  # ready for the first save, and no earlier: it takes a core for 0.2 s, which a first step waits for
        return waited

    def wait(self, deadline_s: float | None = None) -> bool:
        """Waits for the save in flight. True when the step last saved is committed, False when time ran out.

        Raises as `save`, and SaveSkipped when that step was skipped: whoever waits needs it.
        """
        self._wait_while_in_flight(deadline_s)
        self._poll()
        if self._in_flight is None and self._skips:
            raise SaveSkipped(f"step {self._saved_step} was not saved: {self._skip_reason}")
        return self._in_flight is None and self._saved_step in (None, self.committed_step)

    def seconds_of_last_save(self) -> float | None:
        """From `save` to the commit; None before the first."""
        return self._seconds

    # --- loading

    def latest(self) -> CheckpointRef | None:
        """The newest that may be read, by a fresh listing."""
        return latest(self._job)

    def load(
        self, ref: CheckpointRef, into: CheckpointState, *, parts: Sequence[CheckpointPart] = PARTS, verify: bool = True
    ) -> LoadedValues:
        """Reads this rank's boxes in place, each 8 MiB block verified; of any world size and mesh.

        Raises DamagedCheckpoint (a digest is wrong, an object is missing; `into` may be half filled), CheckpointError (it does not
        fit: the first problems and how many) and StorageError.
        """
        job = JobFolder.open(ref.uri.removesuffix(ref.key).rstrip("/"), settings=self._settings.store)
        reader = CheckpointReader(job, ref, threads=self._settings.read_threads, verify=verify)
        return self._load(reader, into, parts)

    def restore(self, into: CheckpointState) -> LoadedValues | None:
        """Loads the newest good checkpoint of this job. All ranks call it together and come to the same one, or the same error.

        A damaged one is quarantined, loudly, and the one before it taken. None: none was ever committed. Raises CheckpointError when
        it does not fit this run (another plan, data, tokenizer or model), or when all are bad or too many in a row; StorageError.
        """
        restored = restore_newest(self._job, self._context, self._settings, lambda ref: self._try(ref, into))
        if restored is not None:
            self.committed_step = restored.step
            self._saved_step = restored.step
        self._preparing = threading.Thread(target=self._prepare, args=(into,), name="checkpoint-prepare", daemon=True)
        self._preparing.start()
        return restored

    def close(self) -> None:
        """Ends the saving process; a save in flight is given up (`wait` first)."""
        for thread in (self._preparing, self._stager):
            if thread is not None:
                thread.join()
        if self._link is not None and self._in_flight is None and not self._is_idle:
            self._link.close()
        elif self._link is not None:
            self._link.kill()
        self._buffer.close()
        if self._telling is not None:
            self._telling.join(TELLING_S)

    # --- inside

    def _try(self, ref: CheckpointRef, into: CheckpointState) -> LoadedValues:
        """This rank's part of restoring one checkpoint, and its share of what nobody needs: a bad object is found by someone."""
        reader = CheckpointReader(self._job, ref, threads=self._settings.read_threads, identity=self._identity)
        check_fingerprints(reader.manifest, self._fingerprints)
        reader.prove_small(self._context.rank, self._context.world_size)
        return self._load(reader, into, PARTS)

    def _load(self, reader: CheckpointReader, into: CheckpointState, parts: Sequence[CheckpointPart]) -> LoadedValues:
        context = self._context
        plan = plan_load(reader.manifest, into, parts, context.rank)
        reader.read(plan.reads, beat=self._beat)
        plan.finish()
        own = own_values(reader, rank=context.rank, world_size=context.world_size, mesh=self._mesh)
        return LoadedValues(step=reader.ref.step, shared=reader.values("state.json"), own=own)

    def _prepare(self, state: CheckpointState) -> None:
        """In a thread: makes room for the first save, whose step would wait for the kernel's empty pages otherwise."""
        with contextlib.suppress(*HARMLESS, StagecoachError):  # the save itself will say it
            self._buffer.reserve(build_layout(state, self._context.rank).size)

    def _stage(self, link: SaverLink, step: int, state: CheckpointState, shared: str, own: str, after: Any) -> None:
        """In a thread: copies the state and orders the upload."""
        if self._preparing is not None:
            self._preparing.join()
        try:
            layout = build_layout(state, self._context.rank)
            self._buffer.copy(layout, after)
            if self._layout is None or layout.entries != self._layout.entries:
                link.send(_layout_order(layout))
            self._layout = layout
            link.send(SaveOrder(step=step, shared=shared, own=own))
        except HARMLESS as error:
            link.send(SaveOrder(step=step, skip=f"rank {self._context.rank} could not copy its state to host memory: {error}"))
        except BaseException as error:
            self._take(Report(kind="failed", step=step, text=str(error), error=type(error).__name__))
        finally:
            self._staged.set()

    def _take(self, report: Report) -> None:
        """A report of the saving process; called from another thread."""
        with self._changed:
            self._reports.append(report)
            if report.kind == "committed":
                self.committed_step, self._seconds = report.step, time.monotonic() - self._began
                self._in_flight, self._skips = None, 0
            elif report.kind == "skipped":
                self._in_flight, self._skips, self._skip_reason = None, self._skips + 1, report.text
                if self._skips >= self._settings.staging_failures:
                    self._error = SaveFailed(f"{self._skips} saves in a row were skipped, the last of step {report.step}: {report.text}")
            elif report.kind in ("failed", "gone"):
                step = self._in_flight
                self._in_flight = None
                self._error = self._error or _error_of(report, step)
                if step is not None:
                    self._tell_the_others(step, str(self._error))
            if report.kind in ("idle", "skipped", "failed", "gone"):
                self._is_idle = True
            self._changed.notify_all()

    def _tell_the_others(self, step: int, why: str) -> None:
        """In a thread, since the store may be what failed: without a word they would wait for this rank until the watchdog ends them."""
        if self._context.world_size == 1 or isinstance(self._error, Fenced):
            return

        def tell() -> None:
            with contextlib.suppress(StagecoachError):
                say_that_it_is_skipped(self._job, ref, self._context.rank, f"rank {self._context.rank}: {why}")

        ref = checkpoint_ref(self._job, step, self._context.attempt)
        self._telling = threading.Thread(target=tell, name="checkpoint-skip", daemon=True)
        self._telling.start()

    def _poll(self) -> None:
        """On the main thread: says what the saving process said, and raises its error."""
        while self._reports:
            report = self._reports.popleft()
            if report.kind == "phase":
                self._context.event("phase", report.text, step=report.step)
            elif report.kind == "committed":
                self._context.event("checkpoint_committed", report.step, step=report.step)
            elif report.kind in ("skipped", "gc_failed"):
                logger.error("checkpoint of step {}: {}", report.step, report.text)
                self._context.event(f"checkpoint_{report.kind}", report.text, step=report.step)
        if self._error is not None:
            raise self._error

    def _wait_while_in_flight(self, deadline_s: float | None) -> None:
        """Keeps saying that the main thread lives."""
        began = time.monotonic()
        while self._in_flight is not None and self._error is None:
            left = POLL_S if deadline_s is None else min(POLL_S, deadline_s - (time.monotonic() - began))
            if left <= 0:
                return
            with self._changed:
                self._changed.wait(left)
            self._beat()

    def _beat(self) -> None:
        """A wait is no step. In phase "train" it is the step that must move, or the watchdog would end a job whose store is slow."""
        beat = self._context.last_beat
        self._context.heartbeat(step=beat.step, phase="save" if beat.phase == "train" else beat.phase)

    def _start_saver(self) -> SaverLink:
        """Once; from the main thread, since the process dies with the thread that made it."""
        if self._link is None:
            self._link = SaverLink(self._saver_job(), self._take)
        return self._link

    def _saver_job(self) -> SaverJob:
        context, settings = self._context, self._settings
        return SaverJob(
            job_uri=context.job.uri, attempt=context.attempt, rank=context.rank, world_size=context.world_size,
            identity=self._identity, mesh=self._mesh, fingerprints=self._fingerprints,
            versions={"stagecoach": __version__, "torch": str(torch.__version__)}, keep=self._keep,
            keep_every_steps=self._keep_every_steps,
            commit_deadline_s=settings.commit_deadline_s, poll_s=settings.poll_s, nice=settings.nice,
            store=asdict(settings.store), descriptor=self._buffer.descriptor,
        )  # fmt: skip


def _layout_order(layout: Layout) -> LayoutOrder:
    objects = [{"name": item.name, "start": item.start, "size": item.size} for item in layout.objects]
    return LayoutOrder(size=layout.size, objects=objects, entries=[to_plain(entry) for entry in layout.entries])


def _ready_event() -> Any:
    """On a GPU: what was queued so far must be done before the copy begins."""
    if not torch.cuda.is_available():
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _error_of(report: Report, step: int | None) -> StagecoachError:
    """The background's error as one that the main thread can raise."""
    if report.kind == "gone":
        where = f"while step {step} was being saved; nothing of it is offered" if step is not None else "while nothing was being saved"
        return SaveFailed(f"{report.text} {where}")
    text = f"saving step {report.step} failed: {report.text}"
    if report.error == Fenced.__name__:
        return Fenced(text)
    kind = getattr(storage_errors, report.error, None)
    return kind(text) if isinstance(kind, type) and issubclass(kind, StagecoachError) else SaveFailed(f"{text} ({report.error})")
