"""Work for a thread behind a bounded queue. Whoever hands it over never waits; what does not fit is counted."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any


class Background:
    """Calls `work(item)` in a thread of its own, one item after another. No method blocks for longer than it says, none raises."""

    def __init__(self, name: str, work: Callable[[Any], None], *, size: int) -> None:
        self._work = work
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=size)
        self._lock = threading.Lock()
        self.dropped = 0  # did not fit
        self.failed = 0  # `work` raised
        self.last_error = ""
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def offer(self, item: Any) -> bool:
        """False when the queue is full: then the item is lost."""
        with self._lock:
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                self.dropped += 1
                return False
            self._idle.clear()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything offered was worked on; False at the timeout."""
        return self._idle.wait(timeout_s)

    def _run(self) -> None:
        while True:
            item = self._waiting.get()
            try:
                self._work(item)
            except Exception as error:  # whatever a sink does: it is never a reason to stop
                self.failed += 1
                self.last_error = f"{type(error).__name__}: {error}"
            with self._lock:
                if self._waiting.empty():
                    self._idle.set()


def write_line_forever(write: Callable[[bytes], int], line: bytes) -> None:
    """Writes all of `line`. Raises OSError."""
    while line:
        line = line[write(line) :]


class EveryS:
    """True at most once in `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._at = float("-inf")

    def __call__(self) -> bool:
        now = self._clock()
        if now - self._at < self._seconds:
            return False
        self._at = now
        return True
