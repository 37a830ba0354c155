"""A large body in parts: cut, digested on the way, a few parts in flight at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from stagecoach.storage.backends import ObjectInfo, Upload
from stagecoach.storage.digest import Digest
from stagecoach.storage.settings import MIB, StoreSettings

MIN_PART_BYTES = 5 * MIB  # S3's, for all parts but the last
PARTS_PER_SIZE = 2000  # S3 takes 10,000 parts: 2,000 each of 8, 16, 32, 64 and 128 MiB make 484 GiB


class Attempt(Protocol):
    def __call__(self, doing: str, attempt: Callable[[], ObjectInfo | None]) -> ObjectInfo | None: ...


class Parts:
    """Cuts pieces of any size into a head (what one PUT takes) and the parts that follow."""

    def __init__(self, data: Iterable[bytes], settings: StoreSettings) -> None:
        self._pieces = iter(data)
        self._settings = settings
        self._held: deque[memoryview] = deque()
        self._held_bytes = 0
        self.digest = Digest()

    def small_body(self) -> bytes | None:
        """The whole body when it fits one PUT; else None, and `parts` yields it from its start."""
        self._hold(self._settings.single_put_bytes + 1)
        return self._take(self._held_bytes) if self._held_bytes <= self._settings.single_put_bytes else None

    def parts(self) -> Iterator[bytes]:
        number = 0
        while True:
            size = max(MIN_PART_BYTES, self._settings.request_bytes) * 2 ** (number // PARTS_PER_SIZE)
            self._hold(size)
            if not self._held_bytes:
                return
            yield self._take(min(size, self._held_bytes))
            number += 1

    def _hold(self, size: int) -> None:
        while self._held_bytes < size:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self.digest.update(piece)
            self._held.append(memoryview(piece))
            self._held_bytes += len(piece)

    def _take(self, size: int) -> bytes:
        taken, missing = [], size
        while missing:
            piece = self._held.popleft()
            if len(piece) > missing:
                self._held.appendleft(piece[missing:])
            taken.append(piece[:missing])
            missing -= len(taken[-1])
        self._held_bytes -= size
        if len(taken) == 1 and isinstance(taken[0].obj, bytes) and taken[0].nbytes == len(taken[0].obj):
            return taken[0].obj  # the caller's own bytes, uncopied
        return b"".join(taken)


def send_parts(upload: Upload, parts: Parts, pool: ThreadPoolExecutor, settings: StoreSettings, attempt: Attempt) -> ObjectInfo:
    """Sends all parts and finishes. The caller aborts the upload when this raises.

    At most a quarter of settings.concurrency parts (at least 2) wait in memory.
    """
    attempt("publishing", upload.start)
    in_flight: deque[Future[ObjectInfo | None]] = deque()
    try:
        for number, body in enumerate(parts.parts(), start=1):
            send = _sender(upload, number, body)
            if not upload.is_parallel:
                attempt("publishing", send)
                continue
            in_flight.append(pool.submit(attempt, "publishing", send))
            if len(in_flight) >= max(2, settings.concurrency // 4):
                in_flight.popleft().result()
        while in_flight:
            in_flight.popleft().result()
    finally:
        _settle(in_flight)
    checksum = parts.digest.hex()
    info = attempt("publishing", lambda: upload.finish(checksum))
    assert info is not None
    return info


def _sender(upload: Upload, number: int, body: bytes) -> Callable[[], None]:
    return lambda: upload.part(number, body)


def _settle(futures: Iterable["Future[ObjectInfo | None]"]) -> None:
    """After an error: no part may arrive later than the abort."""
    for future in futures:
        if not future.cancel():
            future.exception()
