"""The process that writes checkpoints, one beside each rank: `python -m stagecoach_workloads.checkpoints.saver SOCKET`. No torch.

It reads the rank's host buffer, writes the rank's objects and `digests-{r}.json`; rank 0's also commits (`commit.py`). No collective is
used: ranks see each other's part in the bucket. It dies with its rank and ignores SIGTERM, which is for the rank to answer.
"""

import contextlib
import json
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stagecoach.checkpoints import CheckpointRef, LeaseWatch, checkpoint_ref, collect
from stagecoach.checkpoints.gc import STALE_UPLOAD_S
from stagecoach.contract.checkpoint import BLOCK_BYTES, CheckpointValues, ObjectDigests, RankDigests, TensorEntry
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import encode, validate
from stagecoach.errors import StorageError
from stagecoach.storage import StoreSettings, open_store
from stagecoach_workloads.checkpoints.commit import Commit, SkippedByRank, digests_name, follow, refuse_when_fenced, say_that_it_is_skipped
from stagecoach_workloads.checkpoints.errors import SaveFailed
from stagecoach_workloads.checkpoints.link import PARENT_PID
from stagecoach_workloads.checkpoints.messages import Report, SaverJob, as_line
from stagecoach_workloads.processes import die_with_parent, ignore_stop_signals, parent_from_environment
from stagecoach_workloads.testing.phases import reached


def main(argv: list[str]) -> int:
    """Serves orders until the rank closes its end."""
    die_with_parent(parent_from_environment(PARENT_PID))
    ignore_stop_signals()
    with socket.socket(fileno=int(argv[0])) as link, link.makefile("rb") as orders:
        first = json.loads(orders.readline())
        first.pop("kind")
        saver = Saver(SaverJob(**first), link)
        for line in orders:
            saver.obey(json.loads(line))
    return 0


class Saver:
    """One rank's part of every save of an attempt."""

    def __init__(self, job: SaverJob, link: socket.socket) -> None:
        self.job, self._link = job, link
        self.folder = JobFolder(open_store(job.job_uri, settings=StoreSettings(**job.store)))
        self._map: mmap.mmap | None = None
        self._objects: list[dict[str, Any]] = []
        self._entries: tuple[TensorEntry, ...] = ()
        self._watch, self._has_swept = LeaseWatch(), False
        yield_to_training(job.nice)

    def obey(self, order: dict[str, Any]) -> None:
        """Carries out one order; what goes wrong is reported, never raised."""
        if order.pop("kind") == "layout":
            self._take_layout(order)
            return
        step = order["step"]
        try:
            self._save(**order)
        except SkippedByRank as skipped:
            self._tell_that_it_is_skipped(step, str(skipped))
        except Exception as error:
            traceback.print_exc()
            self._say("failed", step, " ".join(str(error).split()), error=type(error).__name__)

    def _take_layout(self, order: dict[str, Any]) -> None:
        self._objects = order["objects"]
        self._entries = tuple(validate(TensorEntry, entry, where="layout") for entry in order["entries"])
        self._map = mmap.mmap(self.job.descriptor, order["size"], prot=mmap.PROT_READ) if order["size"] else None

    def _save(self, step: int, shared: str, own: str, skip: str) -> None:
        job, began = self.job, time.monotonic()
        ref = checkpoint_ref(self.folder, step, job.attempt)
        if skip:
            raise SkippedByRank(skip)
        self._enter("upload", step)
        refuse_when_fenced(job, self.folder)
        self._refuse_a_used_folder(ref)
        digests = RankDigests(
            rank=job.rank, step=step, attempt=job.attempt, objects=tuple(self._write(ref, shared, own)), tensors=self._entries
        )
        self.folder.store.publish(f"{ref.key}/{digests_name(job.rank)}", encode(digests, indent=None))
        if job.rank == 0:
            Commit(job, self.folder, ref, self._enter).run()
        else:
            follow(job, self.folder, ref)
        self._say("committed", step, numbers={"seconds": time.monotonic() - began})
        if job.rank == 0:
            self._enter("gc", step)
            self._collect(step)
        self._say("idle", step)

    def _tell_that_it_is_skipped(self, step: int, why: str) -> None:
        with contextlib.suppress(StorageError):
            say_that_it_is_skipped(self.folder, checkpoint_ref(self.folder, step, self.job.attempt), self.job.rank, why)
        self._say("skipped", step, why)

    def _refuse_a_used_folder(self, ref: CheckpointRef) -> None:
        """A folder is written once: what a killed save left must not be mixed with a new one."""
        if self.folder.store.exists(f"{ref.key}/{digests_name(self.job.rank)}"):
            raise SaveFailed(f"{ref.uri} holds objects of an earlier save of the same step by this attempt; a folder is never used again")

    def _write(self, ref: CheckpointRef, shared: str, own: str) -> list[ObjectDigests]:
        """All of this rank's objects: the large ones one after the other, since the cores are for training, the small ones beside them."""
        small = {f"state-{self.job.rank:05d}.json": _values(own)}
        if self.job.rank == 0:
            small["state.json"] = _values(shared)
        with memoryview(self._map) if self._map is not None else memoryview(b"") as memory, ThreadPoolExecutor(1) as beside:
            large = {item["name"]: memory[item["start"] : item["start"] + item["size"]] for item in self._objects}
            sent = beside.submit(self._publish_all, ref, small)
            return self._publish_all(ref, large) + sent.result()

    def _publish_all(self, ref: CheckpointRef, bodies: Mapping[str, memoryview]) -> list[ObjectDigests]:
        return [self._publish(ref, name, body) for name, body in bodies.items()]

    def _publish(self, ref: CheckpointRef, name: str, body: memoryview) -> ObjectDigests:
        """Uploads one object, whose blocks the store digests on their way, and looks whether all of it arrived."""
        info = self.folder.store.publish(f"{ref.key}/{name}", in_blocks(body))
        if info.size != body.nbytes:
            raise SaveFailed(f"{ref.uri}/{name}: {body.nbytes} bytes were sent, and the store holds {info.size}")
        return ObjectDigests(name=name, size=body.nbytes, blocks=info.blocks, checksum=info.checksum)

    def _collect(self, step: int) -> None:
        """Removes old checkpoints. What goes wrong here is said and tried again after the next save: the new one is safe."""
        job, is_first = self.job, not self._has_swept
        self._has_swept = True  # what killed predecessors left half sent is looked for once an attempt
        try:
            done = collect(
                self.folder, keep=job.keep, keep_every_steps=job.keep_every_steps, watch=self._watch,
                stale_upload_s=STALE_UPLOAD_S if is_first else None,
            )  # fmt: skip
            if done.refused:
                self._say("gc_failed", step, done.refused)
        except Exception as error:
            traceback.print_exc()
            self._say("gc_failed", step, " ".join(str(error).split()), error=type(error).__name__)

    def _enter(self, phase: str, step: int) -> None:
        self._say("phase", step, phase)
        reached(phase, step)

    def _say(self, kind: str, step: int, text: str = "", *, error: str = "", numbers: dict[str, float] | None = None) -> None:
        with contextlib.suppress(OSError):  # the rank is gone; so are we, in a moment
            self._link.sendall(as_line(Report(kind=kind, step=step, text=text, error=error, numbers=numbers or {})))


def yield_to_training(nice: int) -> None:
    """Beside its priority: a process of the batch class takes no core away when the disk answers, it waits until one is given up."""
    os.nice(nice)
    with contextlib.suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def in_blocks(body: memoryview) -> Iterator[memoryview]:
    """The body, uncopied. The store asks for a block, and digests it, while it sends the one before."""
    return (body[start : start + BLOCK_BYTES] for start in range(0, body.nbytes, BLOCK_BYTES))


def _values(text: str) -> memoryview:
    return memoryview(encode(CheckpointValues(values=json.loads(text))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
