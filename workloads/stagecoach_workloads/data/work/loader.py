"""Batches of one rank, step by step: the plan in this process, the work in worker processes.

torchdata's StatefulDataLoader starts the workers and keeps the order; its own state is not used. The plan's state is the only one:
a step is the same whatever the number of ranks, workers, threads or prefetched tasks.
"""

import copy
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from threading import Lock
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from stagecoach.contract.plan import StagePlan
from stagecoach_workloads.data.plan.open import OpenData
from stagecoach_workloads.data.tokens import TextTokenizer
from stagecoach_workloads.data.work.collate import BadSample, Batch, CollateSettings, Collator, Empty
from stagecoach_workloads.data.work.fetch import Fetcher, FetchSettings, Origin
from stagecoach_workloads.data.work.rooms import FullError, Parcel, Rooms, room_bytes
from stagecoach_workloads.data.work.tasks import Task, TaskMaker

_OPENING = Lock()
_NEVER = 1 << 62  # StatefulDataLoader: do not snapshot workers


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """How the work is done; none of it changes a batch. `workers` 0: threads of this process, which start at once; two processes
    of one thread load small images a fifth faster on two quiet cores (benchmarks/data_decode.py). `prefetch` tasks per worker are under
    way."""

    workers: int = 0
    threads: int = 2  # decoding, per worker
    prefetch: int = 2
    rooms: int = 32  # per worker: batches that are held at once in memory that is used again; it is spent as they are held
    timeout_s: float = 0.0  # 0: storage has its own deadline
    fetch: FetchSettings = field(default_factory=FetchSettings)


@dataclass(frozen=True)
class LoadedStep:
    """One step on one rank: its microbatches in order, and what was bad on this rank."""

    step: int
    batches: list[Batch]

    @property
    def bad(self) -> list[BadSample]:
        return [bad for batch in self.batches for bad in batch.bad]

    @property
    def num_samples(self) -> int:
        return sum(batch.num_samples for batch in self.batches)


class Work(TorchDataset[Batch | Parcel]):
    """Tasks to batches, in a worker process or here. Connections and threads are opened on first use, never inherited."""

    def __init__(self, origins: list[Origin], names: list[str], tokenizer: TextTokenizer, stage: StagePlan, settings: WorkSettings) -> None:
        self.origins, self.names, self.tokenizer, self.stage, self.settings = origins, names, tokenizer, stage, settings
        self.rooms: Rooms | None = None  # for worker processes
        self._open: tuple[Fetcher, Collator] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def __getitem__(self, task: Task) -> Batch | Parcel:
        """In a worker process: the batch in a room, or as it is where none is free."""
        worker = get_worker_info()
        room = self.rooms.free_of(worker.id) if self.rooms and worker else None
        if self.rooms and room:
            try:
                return self.rooms.send(room.pack(self.batch(task, room.empty)))
            except FullError:
                pass
        return self.batch(task)

    def batch(self, task: Task, empty: Empty = np.empty) -> Batch:
        """The task's batch, in memory from `empty`. Raises what storage raises when it is not the content's fault (exit code 75), and
        DataError (41)."""
        fetcher, collator = self.parts()
        documents = [document for row in task.rows for document in row]
        return collator.collate(task.step, task.rows, fetcher.fetch(documents), empty)

    def parts(self) -> tuple[Fetcher, Collator]:
        with _OPENING:
            return self._open or self._do_open()

    def _do_open(self) -> tuple[Fetcher, Collator]:
        if self._open is None:
            import cv2

            cv2.setNumThreads(0)  # threads are ours to count
            pool = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="decode")
            collator = Collator(collate_settings(self.stage), self.tokenizer, self.names, pool, threads=self.settings.threads)
            self._open = Fetcher(self.origins, self.settings.fetch), collator
        return self._open


def collate_settings(stage: StagePlan) -> CollateSettings:
    return CollateSettings(
        seq_len=stage.batch.seq_len,
        template=stage.data.template,
        targets=stage.loss.targets,
        tile_size=stage.model.image.size,
        tokens_per_tile=stage.model.connector.tokens,
        vocabulary=stage.model.decoder.vocab_size + stage.model.decoder.added_tokens,
    )


def make_rooms(settings: WorkSettings, stage: StagePlan) -> Rooms | None:
    """None where the system has no memory without a name."""
    return Rooms(workers=settings.workers, each=settings.rooms, size=room_bytes(stage)) if hasattr(os, "memfd_create") else None


class _Tasks(Sampler[Task]):
    """The rank's tasks from a step on, without end or up to one."""

    def __init__(self, data: OpenData, *, rank: int, world_size: int, start: int, stop: int | None) -> None:
        self.data, self.rank, self.world_size, self.start, self.stop = data, rank, world_size, start, stop
        self.maker = TaskMaker(data.datasets, data.layouts)

    def __iter__(self) -> Iterator[Task]:
        step = self.start
        while self.stop is None or step < self.stop:
            rows = self.data.plan.batch(step)
            yield from self.maker.tasks(step, rows, self.data.plan.assign(rows, self.world_size)[self.rank])
            step += 1


class StepLoader:
    """Iterates `LoadedStep`s of one rank from `start`. `state(step)` is what a checkpoint keeps."""

    def __init__(
        self,
        data: OpenData,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        state: dict[str, Any] | None = None,
        settings: WorkSettings | None = None,
    ) -> None:
        """`state` is that of step `start`; without it earlier windows are packed once more. Raises DataError for another plan's state."""
        self.data, self.settings = data, settings or WorkSettings()
        if state is not None:
            data.plan.go_to(state)
        self._tasks = _Tasks(data, rank=rank, world_size=world_size, start=start, stop=stop)
        origins = [Origin(dataset.store, dataset.manifest.fingerprint) for dataset in data.datasets]
        names = [source.name for source in data.plan.sources]
        self.work = Work(origins, names, data.tokenizer, data.stage, self.settings)

    def __iter__(self) -> Iterator[LoadedStep]:
        held: list[Batch] = []
        places = self._places()
        for batch in self._batches():
            step, of = next(places)
            held.append(batch)
            if len(held) == of:
                yield LoadedStep(step, held)
                held = []

    def state(self, step: int) -> dict[str, Any]:
        """The data state before `step`: < 1 kB of JSON, equal on every rank."""
        return self.data.plan.state(step)

    def _places(self) -> Iterator[tuple[int, int]]:
        """(step, microsteps of it) of each task, as the sampler deals them."""
        while True:
            yield self._dealt.pop(0)

    def _batches(self) -> Iterator[Batch]:
        self._dealt: list[tuple[int, int]] = []
        if self.settings.workers == 0:
            yield from self._here()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 calls it; torch 2.13 warns
            before = set(multiprocessing.active_children())
            work = copy.copy(self.work)
            rooms = work.rooms = make_rooms(self.settings, self.data.stage)
            batches = iter(self._loader(work))
            end_with_this_process([child for child in multiprocessing.active_children() if child not in before])
        for found in batches:
            yield rooms.receive(found) if rooms and isinstance(found, Parcel) else found

    def _here(self) -> Iterator[Batch]:
        """In this process, `prefetch` microsteps ahead, so that decoding goes on while a batch is used."""
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max(1, self.settings.prefetch), thread_name_prefix="collate") as pool:
            try:
                for task in _Noting(self._tasks, self._dealt):
                    ahead.append(pool.submit(self.work.batch, task))
                    if len(ahead) > self.settings.prefetch:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _loader(self, work: Work) -> StatefulDataLoader[Any]:
        return StatefulDataLoader(
            work,
            sampler=_Noting(self._tasks, self._dealt),
            batch_size=None,
            num_workers=self.settings.workers,
            prefetch_factor=self.settings.prefetch,
            timeout=self.settings.timeout_s,
            multiprocessing_context="spawn",  # never fork once a store was used
            worker_init_fn=ignore_stop_signals,
            snapshot_every_n_steps=_NEVER,
        )


class _Noting(Sampler[Task]):
    """Notes what was dealt, in order, so that batches need not carry it."""

    def __init__(self, tasks: _Tasks, dealt: list[tuple[int, int]]) -> None:
        self.tasks, self.dealt = tasks, dealt

    def __iter__(self) -> Iterator[Task]:
        for task in self.tasks:
            self.dealt.append((task.step, task.of))
            yield task


def end_with_this_process(workers: Sequence[BaseProcess]) -> None:
    """At exit multiprocessing sends SIGTERM, which our workers ignore, and then waits for them for ever: they are killed before that."""

    def kill() -> None:
        for worker in workers:
            worker.kill()

    Finalize(None, kill, exitpriority=100)


def ignore_stop_signals(_worker: int) -> None:
    """SIGTERM reaches a whole process group; the rank decides when its workers end, and they end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
