"""The bytes of documents: whole blocks from object storage, exact ranges from a file system; in parallel, bounded in bytes.

A block (about 4 MiB) holds samples that the shuffle uses at about the same time, so reading it whole costs one request for dozens
of images. Blocks are kept in memory up to `memory_bytes` and, with a cache folder, on disk for the node's other processes.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

from stagecoach.storage import Store
from stagecoach_workloads.data.dataset import ContentError, read_ranges
from stagecoach_workloads.data.work.cache import BlockCache
from stagecoach_workloads.data.work.tasks import Document

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """`read`: `auto` reads blocks from object stores and ranges from files."""

    read: Literal["auto", "blocks", "ranges"] = "auto"
    memory_bytes: int = 256 * MIB  # of blocks, per process
    cache_folder: str | None = None
    cache_bytes: int = 20 * 1024 * MIB
    threads: int = 4


@dataclass
class FetchCounts:
    """What was asked of the store."""

    requests: int = 0
    bytes: int = 0
    cache_hits: int = 0


@dataclass(frozen=True)
class Origin:
    """Where one source's shards are."""

    store: Store
    fingerprint: str

    @property
    def is_remote(self) -> bool:
        return not self.store.uri.startswith(("file://", "memory://"))

    @property
    def folder(self) -> str | None:
        """The path on this machine's file system, if it is one."""
        return self.store.uri.removeprefix("file://") if self.store.uri.startswith("file://") else None


@dataclass
class Fetcher:
    """Reads documents' stretches. One a process."""

    origins: Sequence[Origin]
    settings: FetchSettings = field(default_factory=FetchSettings)
    counts: FetchCounts = field(default_factory=FetchCounts)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="fetch")
        self._blocks: OrderedDict[tuple[int, str, int], Future[bytes]] = OrderedDict()
        self._held, self._lock = 0, Lock()
        folder = self.settings.cache_folder
        self._cache = BlockCache(Path(folder), max_bytes=self.settings.cache_bytes) if folder else None

    def fetch(self, documents: Iterable[Document]) -> list[bytes | ContentError]:
        """Each document's stretch, in order; a ContentError in place of one whose shard is missing or cut off.

        Anything else that storage says (unavailable, denied) is raised.
        """
        wanted = list(documents)
        found: list[bytes | ContentError] = [b""] * len(wanted)
        for places, job in self._start(wanted):
            for place, body in zip(places, job.result(), strict=True):
                found[place] = body
        return found

    def _start(self, wanted: Sequence[Document]) -> "list[tuple[list[int], Future[list[bytes | ContentError]]]]":
        """One job a block, or a shard of which ranges are read, with the places of the documents whose stretches it brings."""
        groups: dict[tuple[int, str, int | None], list[int]] = {}
        for place, document in enumerate(wanted):
            block = document.block[0] if self._reads_blocks(document.source) else None
            groups.setdefault((document.source, document.stretch.shard, block), []).append(place)
        return [(places, self._pool.submit(self._read, [wanted[place] for place in places])) for places in groups.values()]

    def _read(self, documents: Sequence[Document]) -> list[bytes | ContentError]:
        """The stretches of documents of one block, or of one shard."""
        first = documents[0]
        return self._of_block(documents) if self._reads_blocks(first.source) else self._ranges(first.source, first.stretch.shard, documents)

    def _of_block(self, documents: Sequence[Document]) -> list[bytes | ContentError]:
        """The stretches of documents of one block."""
        try:
            base, block = self._block(documents[0])
        except ContentError as error:
            return [error] * len(documents)
        firsts = [document.stretch.offset - base for document in documents]
        return [block[first : first + document.stretch.length] for first, document in zip(firsts, documents, strict=True)]

    def _reads_blocks(self, source: int) -> bool:
        return self.settings.read == "blocks" or (self.settings.read == "auto" and self.origins[source].is_remote)

    def _ranges(self, source: int, shard: str, documents: Sequence[Document]) -> list[bytes | ContentError]:
        """Exact ranges; when together they cannot be read, one by one, so that only the damaged ones are missing."""
        local = self.origins[source].folder
        if local and (bodies := _read_file(f"{local}/{shard}", documents)):
            self._count(len(documents), sum(document.stretch.length for document in documents))
            return bodies
        store = self.origins[source].store
        ranges = [(document.stretch.offset, document.stretch.length) for document in documents]
        self._count(len(ranges), sum(length for _, length in ranges))
        try:
            return list(read_ranges(store, shard, ranges))
        except ContentError as error:
            if len(ranges) == 1:
                return [error]
        return [self._ranges(source, shard, [document])[0] for document in documents]

    def _block(self, document: Document) -> tuple[int, bytes]:
        """The document's block, from memory, the cache folder or the store. Two threads never read the same block twice."""
        key = (document.source, document.stretch.shard, document.block[0])
        with self._lock:
            future = self._blocks.get(key)
            mine = future is None
            if future is None:
                future = self._blocks[key] = Future()
            else:
                self._blocks.move_to_end(key)
        if mine:
            try:
                future.set_result(self._read_block(document))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)
                future.set_exception(error)
                raise
            self._make_room(len(future.result()))
        return document.block[0], future.result()

    def _read_block(self, document: Document) -> bytes:
        origin, (offset, length) = self.origins[document.source], document.block
        name = f"{origin.fingerprint[:16]}-{document.stretch.shard.replace('/', '_')}-{offset}"
        if self._cache is None:
            return self._ask_for(origin, document)
        held = self._held_in(self._cache, name, length)
        if held is None:
            with self._cache.turn(name):  # another process of the node may be reading it just now
                held = self._held_in(self._cache, name, length)
                if held is None:
                    held = self._ask_for(origin, document)
                    self._cache.write(name, held)
        return held

    def _held_in(self, cache: BlockCache, name: str, length: int) -> bytes | None:
        held = cache.read(name)
        if held is None or len(held) != length:
            return None
        with self._lock:
            self.counts.cache_hits += 1
        return held

    def _ask_for(self, origin: Origin, document: Document) -> bytes:
        self._count(1, document.block[1])
        return read_ranges(origin.store, document.stretch.shard, [document.block])[0]

    def _make_room(self, added: int) -> None:
        with self._lock:
            self._held += added
            while self._held > self.settings.memory_bytes and len(self._blocks) > 1:
                key, oldest = next(iter(self._blocks.items()))
                if not oldest.done():
                    return
                del self._blocks[key]
                self._held -= len(oldest.result()) if oldest.exception() is None else 0

    def _count(self, requests: int, size: int) -> None:
        with self._lock:
            self.counts.requests += requests
            self.counts.bytes += size

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _read_file(path: str, documents: Sequence[Document]) -> list[bytes | ContentError] | None:
    """The usual case of a local shard: plain reads (5 us a sample; through the store 140). None when anything is unusual: then the store
    reads, retries and says what is wrong."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        bodies: list[bytes | ContentError] = []
        for document in documents:
            body = os.pread(file, document.stretch.length, document.stretch.offset)
            if len(body) != document.stretch.length:
                return None
            bodies.append(body)
        return bodies
    except OSError:
        return None
    finally:
        os.close(file)
