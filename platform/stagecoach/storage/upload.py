"""A large body in parts: cut, digested on the way, a few parts in flight at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from stagecoach.storage.backends import ObjectInfo, Upload
from stagecoach.storage.digest import ObjectDigest
from stagecoach.storage.settings import MIB, StoreSettings

MIN_PART_BYTES = 5 * MIB  # S3's, for all parts but the last
PARTS_PER_SIZE = 2000  # S3 takes 10,000 parts: 2,000 each of 8, 16, 32, 64 and 128 MiB make 484 GiB


class Attempt(Protocol):
    def __call__(self, doing: str, attempt: Callable[[], ObjectInfo | None]) -> ObjectInfo | None: ...


class Parts:
    """Cuts pieces of any size into a head (what one PUT takes) and the parts that follow."""

    def __init__(self, data: Iterable[bytes | memoryview], settings: StoreSettings) -> None:
        self._pieces = iter(data)
        self._settings = settings
        self._held: deque[memoryview] = deque()
        self._held_bytes = 0
        self.digest = ObjectDigest()

    def small_body(self) -> bytes | None:
        """The whole body when it fits one PUT; else None, and `parts` yields it from its start."""
        self._hold(self._settings.single_put_bytes + 1)
        return bytes(self._take(self._held_bytes)) if self._held_bytes <= self._settings.single_put_bytes else None

    def parts(self) -> Iterator[bytes | memoryview]:
        """A piece of the caller's that is as large as a part is one, uncopied."""
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

    def _take(self, size: int) -> bytes | memoryview:
        taken, missing = [], size
        while missing:
            piece = self._held.popleft()
            if len(piece) > missing:
                self._held.appendleft(piece[missing:])
            taken.append(piece[:missing])
            missing -= len(taken[-1])
        self._held_bytes -= size
        if len(taken) != 1:
            return b"".join(taken)
        whole = taken[0].obj
        return whole if isinstance(whole, bytes) and taken[0].nbytes == len(whole) else taken[0]


def send_parts(upload: Upload, parts: Parts, pool: ThreadPoolExecutor, settings: StoreSettings, attempt: Attempt) -> ObjectInfo:
    """Sends all parts and finishes. The caller aborts the upload when this raises.

    At most a quarter of settings.concurrency parts (at least 2) wait in memory.
    """
    attempt("publishing", upload.start)
    if upload.is_parallel:
        _send_at_once(upload, parts, pool, max(2, settings.concurrency // 4), attempt)
    else:
        _send_in_order(upload, parts, attempt)
    checksum = parts.digest.hex()
    info = attempt("publishing", lambda: upload.finish(checksum))
    assert info is not None
    return info


def _send_at_once(upload: Upload, parts: Parts, pool: ThreadPoolExecutor, most: int, attempt: Attempt) -> None:
    in_flight: deque[Future[ObjectInfo | None]] = deque()
    try:
        for number, body in enumerate(parts.parts(), start=1):
            in_flight.append(pool.submit(attempt, "publishing", _sender(upload, number, body)))
            if len(in_flight) >= most:
                in_flight.popleft().result()
        while in_flight:
            in_flight.popleft().result()
    finally:
        _settle(in_flight)


def _send_in_order(upload: Upload, parts: Parts, attempt: Attempt) -> None:
    """One part after another; the next is made, and digested, while one is sent."""
    bodies = parts.parts()
    with ThreadPoolExecutor(1, thread_name_prefix="stagecoach-upload") as maker:
        made, number = maker.submit(next, bodies, None), 1
        while (body := made.result()) is not None:
            made = maker.submit(next, bodies, None)
            attempt("publishing", _sender(upload, number, body))
            number += 1


def _sender(upload: Upload, number: int, body: bytes | memoryview) -> Callable[[], None]:
    return lambda: upload.part(number, body)


def _settle(futures: Iterable["Future[ObjectInfo | None]"]) -> None:
    """After an error: no part may arrive later than the abort."""
    for future in futures:
        if not future.cancel():
            future.exception()
