"""The manifest and the bytes of one checkpoint, proven while they are read."""

import json
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
        self.ref, self._store, self._threads, self._verify = ref, job.store, threads, verify
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
        """Fetches one block and hands out its bytes."""
        begin = block * BLOCK_BYTES
        body = np.frombuffer(self._fetch(name, block), np.uint8)
        for read in wanted:
            start, stop = max(begin, read.start), min(begin + body.size, read.start + read.into.size)
            np.copyto(read.into[start - read.start : stop - read.start], body[start - begin : stop - begin])
        return body.size

    def _fetch(self, name: str, block: int) -> bytes:
        """One block with the right digest; a wrong one is fetched once more, since it may have gone bad on its way."""
        item, begin = self._object(name), block * BLOCK_BYTES
        length, key = min(BLOCK_BYTES, item.size - begin), f"{self.ref.key}/{name}"
        for _ in range(2):
            try:
                [body] = self._store.read_ranges(key, [(begin, length)])
            except NotFound as error:
                raise DamagedCheckpoint(f"{self.ref.uri}/{name} is missing") from error
            except OutOfRange as error:
                raise DamagedCheckpoint(f"{self.ref.uri}/{name} is shorter than the {item.size} bytes that were written") from error
            found = digest.of(body) if self._verify else item.blocks[block]
            if found == item.blocks[block]:
                return body
        tensors = tensors_in(self.manifest, name, begin, begin + length)
        holds = (
            f", where {', '.join(tensors[:SHOWN_TENSORS])}{' and others' if len(tensors) > SHOWN_TENSORS else ''} lie" if tensors else ""
        )
        raise DamagedCheckpoint(
            f"{self.ref.uri}/{name}, block {block} (bytes {begin} to {begin + length}{holds}): its XXH3-128 is {found}, "
            f"{item.blocks[block]} was committed"
        )


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
