"""A second request for a read that takes unusually long: the tail of a store is per connection, rarely per object."""

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from stagecoach.storage.s3_connection import ask

CHUNK_BYTES = 1024 * 1024
MIN_SAMPLES = 20
MAX_SHARE = 0.05  # of requests may be second ones
MIN_DELAY_S = 0.05


@dataclass
class Received:
    """What one request gave before it ended, well or badly."""

    head: Any = None
    body: bytearray = field(default_factory=bytearray)
    failure: BaseException | None = None


class Hedger:
    """Knows what is slow (above the 95th percentile of the last 200 short reads) and how many second requests may still be sent."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=200)
        self._requests = self.hedged = 0

    def delay_s(self) -> float | None:
        with self._lock:
            self._requests += 1
            if not self.enabled or len(self._seconds) < MIN_SAMPLES:
                return None
            slow = sorted(self._seconds)[int(0.95 * len(self._seconds))]
        return max(MIN_DELAY_S, 2 * slow)

    def may_hedge(self) -> bool:
        with self._lock:
            if self.hedged + 1 > MAX_SHARE * self._requests:
                return False
            self.hedged += 1
            return True

    def took(self, seconds: float) -> None:
        with self._lock:
            self._seconds.append(seconds)


async def receive(fs: Any, wanted: dict[str, Any], collected: list[Received], hedger: Hedger | None) -> None:
    """Fills `collected` with one Received per request sent; the one that completed comes first. Raises when none did."""
    if hedger is None:
        await _receive_one(fs, wanted, collected)
        return
    started_at, delay_s = time.monotonic(), hedger.delay_s()
    first = asyncio.ensure_future(_receive_one(fs, wanted, collected))
    tasks = [first]
    try:
        await asyncio.wait(tasks, timeout=delay_s)
        if not first.done() and hedger.may_hedge():
            tasks.append(asyncio.ensure_future(_receive_one(fs, wanted, collected)))
        winner = await _first_good(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    collected.sort(key=lambda part: part is not winner)
    hedger.took(time.monotonic() - started_at)


async def _first_good(tasks: "list[asyncio.Task[Received]]") -> Received:
    waiting = set(tasks)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result()
        if not waiting:
            return tasks[0].result()  # raises


async def _receive_one(fs: Any, wanted: dict[str, Any], collected: list[Received]) -> Received:
    received = Received()
    collected.append(received)
    reply = await ask(fs, "get_object", **wanted)
    received.head = reply
    async with reply["Body"] as stream:
        while chunk := await stream.read(CHUNK_BYTES):
            received.body += chunk
    return received
