"""What ranks print, and their events: from FIFOs to segments in the bucket, redacted on the way.

Nothing here waits for the bucket or for a log volume: threads do, behind bounded buffers. What does not fit is counted, and said.
"""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stagecoach.contract.ledger import JobFolder
from stagecoach.log import as_line, logger
from stagecoach.redaction import redact

if TYPE_CHECKING:
    from loguru import Message

SEGMENT_BYTES = 1 << 20
SEGMENT_S = 15.0
BUFFER_BYTES = 16 << 20  # of segments that wait for the bucket
READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 18  # a longer line is cut
TEE_LINES = 10_000
RETRY_S = 1.0


@dataclass(frozen=True)
class _Segment:
    kind: str
    attempt: int
    source: str
    number: int
    body: bytes


class Shipper:
    """One thread that publishes segments in order, and tries again when the bucket fails."""

    def __init__(self, job: JobFolder, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._job, self._buffer_bytes = job, buffer_bytes
        self._waiting: deque[_Segment] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        threading.Thread(target=self._run, name="log-shipper", daemon=True).start()

    def offer(self, segment: _Segment) -> bool:
        """False when the buffer is full: then its lines are lost."""
        with self._changed:
            if self._bytes + len(segment.body) > self._buffer_bytes:
                return False
            self._waiting.append(segment)
            self._bytes += len(segment.body)
            self._changed.notify_all()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything offered is in the bucket; False at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _run(self) -> None:
        failing_since: float | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                segment = self._waiting[0]
            try:
                self._job.write_segment(segment.kind, segment.attempt, segment.source, segment.number, segment.body)
            except Exception as error:  # whatever a store raises: logs are never a reason to stop
                if failing_since is None:
                    failing_since = time.monotonic()
                    logger.warning(f"logs do not reach the bucket and wait here: {error}")
                time.sleep(RETRY_S)
                continue
            if failing_since is not None:
                logger.info(f"logs reach the bucket again after {time.monotonic() - failing_since:.0f} s")
                failing_since = None
            with self._changed:
                self._waiting.popleft()
                self._bytes -= len(segment.body)
                self._changed.notify_all()


class SegmentWriter:
    """The lines of one source in one attempt, cut at 1 MiB or 15 s after the first line that waits."""

    def __init__(self, shipper: Shipper, kind: str, attempt: int, source: str) -> None:
        self._shipper, self._kind, self._attempt, self._source = shipper, kind, attempt, source
        self._number = 0
        self._dropped = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._since: float | None = None

    def add(self, text: str) -> None:
        """Adds whole lines, each with its newline, already redacted."""
        body = text.encode("utf-8", "replace")
        self._parts.append(body)
        self._size += len(body)
        self._since = self._since if self._since is not None else time.monotonic()
        if self._size >= SEGMENT_BYTES:
            self.cut()

    def tick(self, now: float) -> None:
        """Cuts when the oldest waiting line is old enough."""
        if self._since is not None and now - self._since >= SEGMENT_S:
            self.cut()

    def cut(self) -> None:
        """Hands over what waits, if anything does."""
        if not self._parts:
            return
        body = b"".join(self._parts)
        lines = body.count(b"\n")
        if self._dropped:
            body = self._note() + body
        if self._shipper.offer(_Segment(self._kind, self._attempt, self._source, self._number, body)):
            self._number += 1
            self._dropped = 0
        else:
            self._dropped += lines
        self._parts, self._size, self._since = [], 0, None

    def _note(self) -> bytes:
        """A line that says what is missing here."""
        if self._kind == "events":
            return b'{"name": "lines_dropped", "value": %d}\n' % self._dropped
        return b"[%d lines dropped: the bucket did not take them in time]\n" % self._dropped


class Tee:
    """Ranks' lines on the supervisor's own standard output, by a thread: a full or slow log volume holds up nobody."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=TEE_LINES)  # the oldest go first
        self._ready = threading.Event()
        threading.Thread(target=self._run, name="tee", daemon=True).start()

    def write(self, source: str, text: str) -> None:
        self._waiting.extend(f"[{source}] {line}\n" for line in text.splitlines())
        self._ready.set()

    def _run(self) -> None:
        while True:
            self._ready.wait()
            self._ready.clear()
            while self._waiting:
                try:
                    sys.stdout.write(self._waiting.popleft())
                    if not self._waiting:
                        sys.stdout.flush()
                except (OSError, ValueError):
                    continue  # the volume is full or closed; the bucket has the lines
                except IndexError:
                    break


class PipeReader:
    """Whole lines out of a FIFO or pipe, redacted, as they come. Made for the event loop: `read` never blocks."""

    def __init__(self, fd: int, on_text: Callable[[str], None]) -> None:
        self.fd = fd
        self._on_text = on_text
        self._rest = b""
        os.set_blocking(fd, False)

    def read(self, *, everything: bool = False) -> bool:
        """Reads what is there (one piece, or all). Returns False at the end of the file."""
        while True:
            try:
                piece = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not piece:
                return False
            self._take(piece)
            if not everything:
                return True

    def finish(self) -> None:
        """Reads what is left, an unfinished last line included."""
        self.read(everything=True)
        if self._rest:
            self._take(b"\n")

    def _take(self, piece: bytes) -> None:
        whole, newline, self._rest = (self._rest + piece).rpartition(b"\n")
        if newline:
            self._on_text(redact(whole.decode("utf-8", "replace")) + "\n")
        elif len(self._rest) > MAX_LINE_BYTES:
            self._on_text(redact(self._rest.decode("utf-8", "replace")) + "\n")
            self._rest = b""


def open_fifo(path: Path) -> int:
    """Makes the FIFO and opens it for reading *and* writing: no end of file between writers, and writers never wait for a reader."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class SupervisorLog:
    """Our own log lines as segments beside the ranks'. Any thread may log; the event loop moves the lines on."""

    def __init__(self, shipper: Shipper, source: str) -> None:
        self._shipper, self._source = shipper, source
        self._waiting: deque[str] = deque(maxlen=TEE_LINES)
        self._writer: SegmentWriter | None = None
        logger.add(self._take, level="INFO", format="{message}", diagnose=False, backtrace=False)

    def _take(self, message: "Message") -> None:
        self._waiting.append(redact(json.dumps(as_line(message.record), ensure_ascii=False, default=str)) + "\n")

    def use_attempt(self, attempt: int) -> None:
        """What is logged from now on, and what was before the first attempt, belongs to this one."""
        if self._writer is not None:
            self.tick(time.monotonic())
            self._writer.cut()
        self._writer = SegmentWriter(self._shipper, "logs", attempt, self._source)

    def tick(self, now: float) -> None:
        if self._writer is None:
            return
        while self._waiting:
            self._writer.add(self._waiting.popleft())
        self._writer.tick(now)

    def close(self) -> None:
        """Hands over what is left."""
        self.tick(time.monotonic())
        if self._writer is not None:
            self._writer.cut()
