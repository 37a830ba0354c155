"""What a kind of store must be able to do: single attempts, no retries, whole paths. `Store` adds keys, retries and ranges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from stagecoach.storage.errors import ObjectChanged, OutOfRange
from stagecoach.storage.retry import Gate
from stagecoach.storage.settings import StoreSettings


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object. `key` is relative to the store that was asked, `etag` changes whenever the body does.

    `checksum` (`digest.of_object`, 32 hex digits) is that of the body as it was published, None when somebody else wrote it. A listing
    of a remote store does not carry checksums (None there): `stat` does. `blocks`: the digest of each 8 MiB, from `publish` alone.
    """

    key: str
    size: int
    etag: str
    checksum: str | None = None
    blocks: tuple[str, ...] = field(default=(), compare=False)


@dataclass
class Download:
    """One body, or a range of it, on its way; a later attempt goes on where an earlier one was cut off."""

    path: str
    start: int = 0
    stop: int | None = None  # excluded; None: to the end
    if_match: str | None = None
    etag: str | None = None
    size: int | None = None  # of the whole object
    checksum: str | None = None  # of the whole object
    body: bytearray = field(default_factory=bytearray)

    @property
    def position(self) -> int:
        return self.start + len(self.body)

    @property
    def is_complete(self) -> bool:
        return self.size is not None and self.position >= self._end

    @property
    def missing(self) -> int:
        return max(0, self._end - self.position)

    @property
    def _end(self) -> int:
        size = self.size or 0
        return size if self.stop is None else min(self.stop, size)

    def describe(self, *, etag: str, size: int, checksum: str | None, shown: str) -> None:
        """Takes what the head of an answer says. Raises ObjectChanged when that is not the object of the earlier attempt."""
        expected = self.if_match or self.etag
        if expected is not None and etag != expected:
            raise changed(shown, expected, etag)
        self.etag, self.size, self.checksum = etag, size, checksum
        if self.stop is not None and self.stop > size:
            raise OutOfRange(
                f"{shown} has {size} bytes, but bytes {self.start} to {self.stop} were asked for: it is shorter than its index says"
            )

    def restart(self) -> None:
        self.body, self.etag, self.size, self.checksum = bytearray(), None, None, None


def changed(shown: str, expected: str, found: str | None) -> ObjectChanged:
    now = f"now has ETag {found}" if found else "now has another ETag"
    return ObjectChanged(
        f"{shown} was replaced while it was read: expected ETag {expected}, it {now}. Read its index again, then its ranges."
    )


class Backend(Protocol):
    """Paths are whole ('bucket/prefix/key', '/folder/key'). Methods make one attempt and raise Transient, or one of our errors."""

    settings: StoreSettings
    gate: Gate

    def download(self, download: Download) -> None:
        """Appends the bytes from download.position on; returns only when the download is complete."""

    def stat(self, path: str) -> ObjectInfo: ...

    def list_page(self, path: str, *, recursive: bool, token: str | None) -> "Page":
        """One page below the folder `path` ('' ends without slash). Keys and folders are whole paths."""

    def put(self, path: str, body: bytes, checksum: str) -> ObjectInfo: ...

    def open_upload(self, path: str) -> "Upload":
        """For a body that comes in parts. Nothing is visible under `path` before `finish`."""

    def put_if_absent(self, path: str, body: bytes, checksum: str, nonce: str) -> bool: ...

    def delete(self, path: str) -> None: ...

    def sweep(self, path: str, older_than_s: float) -> int:
        """Removes what killed writers left (temporary files, unfinished multipart uploads). Returns how many."""

    def uri(self, path: str) -> str: ...


@runtime_checkable
class Filler(Protocol):
    """A backend that can read into memory of the caller's."""

    def fill(self, path: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fills the writable `buffers`, one after another, with the bytes from `start` on. Raises NotFound, OutOfRange."""


@dataclass
class Page:
    objects: list[ObjectInfo] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    next_token: str | None = None


class Upload(Protocol):
    """Parts are numbered from 1 and may be sent again; in any order and at once when `is_parallel`."""

    is_parallel: bool

    def start(self) -> None: ...
    def part(self, number: int, body: bytes | memoryview) -> None: ...
    def finish(self, checksum: str) -> ObjectInfo: ...
    def abort(self) -> None:
        """Leaves nothing behind. Never raises."""
