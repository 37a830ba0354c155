"""Events of a rank go to its supervisor through a FIFO and from there to the bucket (interfaces.md section 7)."""

import json
import os
import select
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_WAITING = 10_000  # lines kept while the pipe is full
MAX_LINE_BYTES = 1 << 16  # a quarter of what the supervisor takes for one line; the ids of a batch, or hundreds of categories, fit
CLOSE_S = 3.0


class EventPipe:
    """Lines into the FIFO; never blocks, never raises. What had to be dropped is counted in a line of its own.

    We are its only writer, so a line that is longer than the pipe has room for (PIPE_BUF, at worst) goes in parts.
    """

    def __init__(self, fifo: Path) -> None:
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._is_cut = False  # the first line that waits is the rest of one
        try:
            self._pipe = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            self._pipe = -1  # started without a supervisor: nobody reads events

    def write(self, event: Mapping[str, Any]) -> None:
        if self._pipe < 0:
            return
        line = json.dumps(event, default=str).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES or len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(line)
        self._send()

    def close(self) -> None:
        """Waits a moment for the reader to make room."""
        deadline = time.monotonic() + CLOSE_S
        room = select.poll()
        if self._pipe >= 0:
            room.register(self._pipe, select.POLLOUT)
        while self._pipe >= 0 and not self._send() and (left := deadline - time.monotonic()) > 0:
            room.poll(left * 1000)
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _send(self) -> bool:
        """True when nothing waits any more."""
        while self._waiting or self._dropped:
            if self._dropped and len(self._waiting) < MAX_WAITING:
                note = {"t": time.time(), "name": "events_dropped", "value": self._dropped}
                self._waiting.insert(int(self._is_cut), json.dumps(note).encode() + b"\n")
                self._dropped = 0
            try:
                written = os.write(self._pipe, self._waiting[0])
            except OSError:  # full, or the reader is gone
                return False
            rest = self._waiting.popleft()[written:]
            self._is_cut = bool(rest)
            if rest:
                self._waiting.appendleft(rest)
        return True
