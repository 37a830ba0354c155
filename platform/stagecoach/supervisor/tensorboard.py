"""TensorBoard's files go from the ranks' local folder to `{job}/tensorboard/attempt-{n}/`, every 15 s when they changed, and at the end.

A thread does it. A bucket that is slow or away costs curves their freshness and nothing else: bytes and time of a round are bounded, what
fails is told once and tried with the next round. Only whole records are published, so a killed writer leaves files that can be read.
"""

import os
import re
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from stagecoach.contract.ledger import JobFolder
from stagecoach.log import logger

FOLDER = "tensorboard"  # in the attempt's local folder
EVERY_S = 15.0
SHARE = 0.2  # of the time at most that a slow bucket is kept busy by this
ROUND_BYTES = 32 << 20
LAST_BYTES = 16 << 20  # held in memory when an attempt ends, so that its folder can go and the next one start
FILE_BYTES = 64 << 20  # a larger file is not ours (they are cut at 4 MiB), and too much to publish again and again

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LENGTH = struct.Struct("<Q")
_AROUND = 16  # length 8, its checksum 4, body, its checksum 4


@dataclass(frozen=True)
class _File:
    attempt: int
    name: str
    body: bytes


class TensorBoardSync:
    """One for a supervisor's life. `follow` an attempt's folder, `let_go` before the folder is removed, `flush` before the process ends."""

    def __init__(self, job: JobFolder, *, every_s: float = EVERY_S) -> None:
        self._job, self._every_s = job, every_s
        self._changed = threading.Condition()
        self._folder: Path | None = None
        self._attempt = 0
        self._published: dict[str, int] = {}  # name -> bytes, of the attempt that is followed
        self._last: deque[_File] = deque()  # of attempts that ended
        self._is_failing = False
        self._told: set[str] = set()
        threading.Thread(target=self._run, name="tensorboard-sync", daemon=True).start()

    def follow(self, folder: Path, attempt: int) -> None:
        """Publishes what appears in `folder`, which need not exist, as this attempt's."""
        with self._changed:
            self._folder, self._attempt, self._published = folder, attempt, {}

    def let_go(self) -> None:
        """Takes what was not published yet into memory. The folder may go."""
        with self._changed:
            if self._folder is None:
                return
            room = LAST_BYTES
            newest_first = reversed(self._unpublished(self._folder))
            found: list[_File] = []
            for name, size in newest_first:
                if size > room:
                    self._tell_once(name, f"TensorBoard: {name} is left out at the end of attempt {self._attempt}; it is too large")
                    continue
                body = _read_whole_records(self._folder / name)
                if body:
                    found.append(_File(self._attempt, name, body))
                    room -= len(body)
            self._last.extend(reversed(found))
            self._folder = None
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that was let go is in the bucket; False at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._last, timeout_s)

    # --- the thread

    def _run(self) -> None:
        pause_s = self._every_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._last), pause_s)
                last = self._last[0] if self._last else None
            started = time.monotonic()
            if last is not None:
                self._publish(last)
                with self._changed:
                    self._last.popleft()  # also where it failed: the bucket's own retries are over
                    self._changed.notify_all()
                continue
            self._round()
            pause_s = max(self._every_s, (time.monotonic() - started) / SHARE)

    def _round(self) -> None:
        """Publishes what changed in the folder that is followed, the oldest file first."""
        with self._changed:
            folder, attempt = self._folder, self._attempt
            waiting = self._unpublished(folder) if folder is not None else []
        room = ROUND_BYTES
        for name, size in waiting:
            if folder is None or size > room or self._last:
                return  # the rest comes with the next round
            body = _read_whole_records(folder / name)
            room -= len(body)
            if not body or not self._publish(_File(attempt, name, body)):
                continue
            with self._changed:
                if self._attempt == attempt:
                    self._published[name] = len(body)

    def _publish(self, file: _File) -> bool:
        try:
            self._job.write_tensorboard(file.attempt, file.name, file.body)
        except Exception as error:  # whatever a store raises: curves are never a reason to stop
            if not self._is_failing:
                logger.warning(f"TensorBoard's files do not reach the bucket: {error}")
            self._is_failing = True
            return False
        if self._is_failing:
            logger.info("TensorBoard's files reach the bucket again")
        self._is_failing = False
        return True

    def _unpublished(self, folder: Path) -> list[tuple[str, int]]:
        """(name, bytes) of files that grew, in the order they were written. Files that are not event files are none of our business."""
        try:
            entries = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
        except OSError:
            return []  # not made yet, or gone
        found = []
        for name, size in sorted(sizes.items()):
            if "tfevents" not in name or not _NAME.fullmatch(name) or size == self._published.get(name, 0):
                continue
            if size > FILE_BYTES:
                self._tell_once(name, f"TensorBoard: {name} has {size >> 20} MiB and is not published; files up to {FILE_BYTES >> 20} are")
                continue
            found.append((name, size))
        return found

    def _tell_once(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            logger.warning(text)


def _read_whole_records(path: Path) -> bytes:
    """The file up to its last whole record; nothing where it is gone or holds no records."""
    try:
        body = path.read_bytes()
    except OSError:
        return b""
    return body[: whole_records(body)]


def whole_records(body: bytes) -> int:
    """How many bytes from the start are whole TFRecords."""
    at = 0
    while at + _AROUND <= len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        if at + _AROUND + length > len(body):
            break
        at += _AROUND + length
    return at
