"""A bounded folder of blocks read from a store, shared by the processes of a node and verified whenever one is opened.

A file is the block followed by the XXH3-128 of its name and itself; it is written under another name, flushed to disk and renamed. One that
was cut short by a kill, damaged since, or is another block's under this name, does not verify: it is removed and read again.

Of several processes that miss a block at the same moment one reads it (`turn`) and the others find it. The kernel frees the lock of a
process that is killed; one that is stuck with the store is waited for a bounded time.
"""

import fcntl
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

_DIGEST = 16
_TEMPORARY = ".part-"
_LOCKS, _NUM_LOCKS = "locks", 1024  # files that stay, so that none is removed while another process opens it; blocks share them by hash
_TRIM_SHARE = 64  # of the bound a process may write before it looks: eight processes together then stay within it
_WAIT_S, _POLL_S = 60.0, 0.02


class BlockCache:
    """Blocks by name. Safe for many processes; the oldest blocks go when it grows past `max_bytes`."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._written = 0

    def read(self, name: str) -> bytes | None:
        """The block, or None when it is not there or does not verify."""
        path = self.folder / name
        try:
            held = path.read_bytes()
        except FileNotFoundError:
            return None
        body = held[:-_DIGEST]
        if len(held) < _DIGEST or _digest_of(name, body) != held[-_DIGEST:]:
            path.unlink(missing_ok=True)
            return None
        return body

    def write(self, name: str, body: bytes) -> None:
        """Keeps the block. A full disk only means that it is not kept."""
        if len(body) > self.max_bytes:
            return
        try:
            self._write(name, body)
        except OSError:
            return
        self._written += len(body)
        if self._written > self.max_bytes // _TRIM_SHARE:
            self._written = 0
            self.trim()

    @contextmanager
    def turn(self, name: str, *, wait_s: float = _WAIT_S) -> Iterator[None]:
        """Held by one process, and one thread of it, at a time: look again, and read the block if it is still missing. After `wait_s`, or
        where locks cannot be made, it is entered all the same: then a block may be read twice, which costs a request and nothing else."""
        descriptor = self._open_lock(name)
        try:
            if descriptor is not None:
                _lock(descriptor, wait_s)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)  # frees the lock

    def _open_lock(self, name: str) -> int | None:
        try:
            (self.folder / _LOCKS).mkdir(exist_ok=True)
            return os.open(self.folder / _LOCKS / f"{zlib.crc32(name.encode()) % _NUM_LOCKS:04d}", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None

    def _write(self, name: str, body: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.write(_digest_of(name, body))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def trim(self) -> None:
        """Removes the least recently written blocks, and what killed writers left, until 7/8 of the bound is free of excess."""
        found = []
        for path in self.folder.iterdir():
            try:
                info = path.stat()
            except FileNotFoundError:
                continue
            if path.name == _LOCKS:
                continue
            found.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes * 7 // 8:
                return
            path.unlink(missing_ok=True)
            total -= size


def _digest_of(name: str, body: bytes) -> bytes:
    """Of both: a sound block under the name of another one is not what was asked for."""
    digest = xxhash.xxh3_128(name.encode() + b"\0")
    digest.update(body)
    return digest.digest()


def _lock(descriptor: int, wait_s: float) -> None:
    """An exclusive lock, or none when it was not to be had in time."""
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                return
            time.sleep(_POLL_S)
        except OSError:  # a file system without locks
            return
