"""A bounded folder of blocks read from a store, shared by the processes of a node and verified whenever one is opened.

A file is the block followed by its XXH3-128; it is written under another name, flushed to disk and renamed. One that was cut short by a
kill, or damaged since, does not verify: it is removed and read again.
"""

import os
import tempfile
from pathlib import Path

import xxhash

_DIGEST = 16
_TEMPORARY = ".part-"


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
        if len(held) < _DIGEST or xxhash.xxh3_128_digest(body) != held[-_DIGEST:]:
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
        if self._written > self.max_bytes // 8:
            self._written = 0
            self.trim()

    def _write(self, name: str, body: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.write(xxhash.xxh3_128_digest(body))
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
            found.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes * 7 // 8:
                return
            path.unlink(missing_ok=True)
            total -= size
