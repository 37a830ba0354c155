"""The manifest and the bytes of one checkpoint, proven while they are read."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.checkpoints import CheckpointRef, DamagedCheckpoint, NewerCheckpoint, read_manifest
from stagecoach.checkpoints.verify import tensors_in
from stagecoach.contract.checkpoint import BLOCK_BYTES, CheckpointValues, ObjectDigests
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode
from stagecoach.errors import CheckpointError, NewerFormat
from stagecoach.storage import NotFound, OutOfRange, digest

SHOWN_TENSORS = 3

ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Read:
    """Bytes of one object and where they go."""

    object: str
    start: int  # in the object
    into: ByteArray  # all of it


class CheckpointReader:
    """One committed checkpoint. Every byte that leaves here had its block's digest, unless `verify` is off."""

    def __init__(self, job: JobFolder, ref: CheckpointRef, *, threads: int, verify: bool = True, identity: str | None = None) -> None:
        """Reads and proves the manifest; raises what `read_manifest` raises, and StorageError."""
        self.ref, self._store, self._verify = ref, job.store, verify
        self._threads = readers_of(job.uri, threads)
        self.manifest, _ = read_manifest(job, ref, identity=identity)
        self._objects = {item.name: item for item in self.manifest.objects}

    def read(self, reads: Iterable[Read], *, beat: Callable[[], None] = lambda: None) -> int:
        """Fills every `into`; returns the bytes fetched. Whole blocks are fetched and proven, several at a time.

        Raises DamagedCheckpoint that names the object and block. `beat` is called a few times a second.
        """
        jobs = self._by_block(reads)
        fetched = 0
        with ThreadPoolExecutor(self._threads, thread_name_prefix="checkpoint-read") as pool:
            futures = {pool.submit(self._fill, name, block, wanted) for (name, block), wanted in sorted(jobs.items())}
            try:
                while futures:
                    done, futures = wait(futures, timeout=0.25, return_when="FIRST_EXCEPTION")
                    fetched += sum(future.result() for future in done)
                    beat()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return fetched

    def values(self, name: str) -> dict[str, Any]:
        """What stands in state.json or state-{r}.json."""
        body = self._whole(name)
        try:
            return dict(decode(CheckpointValues, body, uri=f"{self.ref.uri}/{name}").values)
        except NewerFormat as error:
            raise NewerCheckpoint(str(error)) from error

    def prove_small(self, share: int, of: int) -> None:
        """Reads every `of`-th object that holds no tensor, from number `share` on: what other ranks wrote of themselves."""
        names = sorted(name for name in self._objects if not name.endswith(".safetensors"))
        bodies = {name: np.empty(self._objects[name].size, np.uint8) for name in names[share::of]}
        self.read(Read(object=name, start=0, into=body) for name, body in bodies.items())

    def _whole(self, name: str) -> bytes:
        item = self._object(name)
        into = np.empty(item.size, np.uint8)
        self.read([Read(object=name, start=0, into=into)])
        return into.tobytes()

    def _object(self, name: str) -> ObjectDigests:
        if name not in self._objects:
            raise DamagedCheckpoint(f"{self.ref.uri}: its manifest has no object {name!r}")
        return self._objects[name]

    def _by_block(self, reads: Iterable[Read]) -> Mapping[tuple[str, int], list[Read]]:
        """Which reads want something of which block."""
        jobs: dict[tuple[str, int], list[Read]] = {}
        for read in reads:
            if not read.into.size:
                continue
            size, stop = self._object(read.object).size, read.start + read.into.size
            if stop > size:
                raise DamagedCheckpoint(f"{self.ref.uri}/{read.object}: bytes up to {stop} are wanted, and its manifest says {size}")
            for block in range(read.start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
                jobs.setdefault((read.object, block), []).append(read)
        return jobs

    def _fill(self, name: str, block: int, wanted: Sequence[Read]) -> int:
        """Fetches one block to where its bytes are wanted."""
        begin = block * BLOCK_BYTES
        length = min(BLOCK_BYTES, self._object(name).size - begin)
        places, copies = spread(begin, length, wanted)
        self._fetch(name, block, places)
        for into, source in copies:
            np.copyto(into, source)
        return length

    def _fetch(self, name: str, block: int, places: Sequence[ByteArray]) -> None:
        """Fills `places` with one block that has the right digest; a wrong one is fetched once more: it may have gone bad on its way."""
        item, begin = self._object(name), block * BLOCK_BYTES
        length, key = sum(place.size for place in places), f"{self.ref.key}/{name}"
        for _ in range(2):
            try:
                self._store.read_into(key, begin, [place.data for place in places])
            except NotFound as error:
                raise DamagedCheckpoint(f"{self.ref.uri}/{name} is missing") from error
            except OutOfRange as error:
                raise DamagedCheckpoint(f"{self.ref.uri}/{name} is shorter than the {item.size} bytes that were written") from error
            found = _digest_of(places) if self._verify else item.blocks[block]
            if found == item.blocks[block]:
                return
        tensors = tensors_in(self.manifest, name, begin, begin + length)
        holds = (
            f", where {', '.join(tensors[:SHOWN_TENSORS])}{' and others' if len(tensors) > SHOWN_TENSORS else ''} lie" if tensors else ""
        )
        raise DamagedCheckpoint(
            f"{self.ref.uri}/{name}, block {block} (bytes {begin} to {begin + length}{holds}): its XXH3-128 is {found}, "
            f"{item.blocks[block]} was committed"
        )


def readers_of(uri: str, most: int) -> int:
    """Many wait for a network at a time. A disk is read ahead for who reads in order: more readers than cores get in each other's way."""
    return min(most, len(os.sched_getaffinity(0))) if uri.startswith("file://") else most


def spread(begin: int, length: int, wanted: Sequence[Read]) -> tuple[list[ByteArray], list[tuple[ByteArray, ByteArray]]]:
    """Where the bytes of a block go: memory that together takes all of it, in order, and what to copy (into, from) afterwards.

    A block is read whole, since only the whole can be proven. What nobody wants goes to memory that is dropped; what is wanted a second
    time is copied.
    """
    places: list[ByteArray] = []
    stop, at = begin + length, begin
    for read in sorted(wanted, key=lambda read: read.start):
        first, last = max(begin, read.start), min(stop, read.start + read.into.size)
        if first < at:  # wanted twice: the block is read aside
            whole = np.empty(length, np.uint8)
            return [whole], [_copy(whole, begin, stop, each) for each in wanted]
        if first > at:
            places.append(np.empty(first - at, np.uint8))
        places.append(read.into[first - read.start : last - read.start])
        at = last
    if at < stop:
        places.append(np.empty(stop - at, np.uint8))
    return places, []


def _copy(whole: ByteArray, begin: int, stop: int, read: Read) -> tuple[ByteArray, ByteArray]:
    first, last = max(begin, read.start), min(stop, read.start + read.into.size)
    return read.into[first - read.start : last - read.start], whole[first - begin : last - begin]


def _digest_of(places: Sequence[ByteArray]) -> str:
    if len(places) == 1:
        return digest.of(places[0].data)
    whole = digest.Digest()
    for place in places:
        whole.update(place.data)
    return whole.hex()


def own_values(reader: CheckpointReader, *, rank: int, world_size: int, mesh: Mapping[str, int]) -> dict[str, Any] | None:
    """Rank r's own values, or None when another layout wrote them."""
    manifest = reader.manifest
    if manifest.world_size != world_size or dict(manifest.mesh) != dict(mesh):
        return None
    return reader.values(f"state-{rank:05d}.json")


def as_json(values: Mapping[str, Any], what: str) -> str:
    """Values as text, at once: they may change after `save` returns. Raises CheckpointError for what JSON cannot say."""
    try:
        return json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} of the checkpoint cannot be written as JSON: {error}") from error
