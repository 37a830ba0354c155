"""Log lines of a local job: ranks' from the bucket's segments, supervisors' from their own files on this machine.

A supervisor's file has all it ever said, also before it had an attempt and what a SIGKILL kept it from shipping, and it is live; so it
stands for the bucket's copy unless one attempt is asked for. It also repeats its ranks' lines as `[rank 3] ...`. Those come from the
bucket, which knows their attempt; the file has those that are not shipped yet (segments are cut after 15 s) when no more will come.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stagecoach.contract.launch import LogLine
from stagecoach.contract.ledger import JobFolder

if TYPE_CHECKING:
    from stagecoach.explain.logs import LogReader

POLL_S = 0.1
SEGMENT_POLL_S = 0.5
SUPERVISOR_RANK = -1
PIECE_BYTES = 4 << 20
KEPT_LINES = 20_000  # of each rank; segments are cut every 15 s or MiB
NO_ATTEMPT = 0  # of a supervisor's own file, which is not cut by attempt
_RANKS_LINE = re.compile(r"\[rank (\d+)\] ")


def follow_file(path: Path, is_growing: Callable[[], bool]) -> Iterator[str]:
    """Lines of a file, ends included, until `is_growing` says no; a last line without an end comes as it stands."""
    try:
        file = path.open(encoding="utf-8", errors="replace", newline="")
    except FileNotFoundError:
        return
    with file:
        rest = ""
        while True:
            is_last_look = not is_growing()
            *lines, rest = (rest + file.read()).split("\n")
            yield from (line + "\n" for line in lines)
            if is_last_look:
                break
            time.sleep(POLL_S)
        if rest:
            yield rest


class Tail:
    """The last lines of a rank that stand in a node's file, and how many there were: those not shipped yet are among them."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.count = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.count += 1

    def after(self, shipped: int) -> list[str]:
        """What came after the first `shipped` lines, as far as it is kept."""
        missing = min(len(self.lines), max(0, self.count - shipped))
        return list(self.lines)[len(self.lines) - missing :]


class NodeLogs:
    """What the nodes' files say: new lines of supervisors since the last look, and the last lines of every rank. Files may be long."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths  # may grow: a cluster's pods come and go
        self.places: dict[Path, int] = {}
        self.ranks: dict[int, Tail] = {}

    def new_lines(self, *, is_last: bool = False) -> Iterator[str]:
        """Supervisors' own lines. A line without an end waits, but for the last look."""
        for path in list(self.paths):
            for body in self._new_pieces(path, is_last=is_last):
                for line in body.decode("utf-8", "replace").removesuffix("\n").split("\n"):
                    if match := _RANKS_LINE.match(line):
                        self.ranks.setdefault(int(match[1]), Tail()).add(line[match.end() :])
                    else:
                        yield line

    def _new_pieces(self, path: Path, *, is_last: bool) -> Iterator[bytes]:
        """Whole lines, about PIECE_BYTES at a time; a longer line is cut."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.places.setdefault(path, 0))
            while body := file.read(PIECE_BYTES):
                end = body.rfind(b"\n") + 1
                if not end and len(body) < PIECE_BYTES and not is_last:
                    return
                is_end = is_last and len(body) < PIECE_BYTES
                whole = body if is_end or not end else body[:end]
                self.places[path] += len(whole)
                file.seek(self.places[path])
                yield whole


def job_lines(
    job: JobFolder | None,
    files: list[Path],
    *,
    rank: int | None,
    attempt: int | None,
    is_growing: Callable[[], bool],
    is_in_files: Callable[[int], bool] = lambda _: True,
) -> Iterator[LogLine]:
    """The lines of one job, until `is_growing` says no. `job` is None when it has no folder in a bucket; `is_in_files`: whether an
    attempt's lines stand in the files, too."""
    from stagecoach.explain.logs import LogReader

    bucket = LogReader(job, rank=rank, attempt=attempt) if job else None
    local = NodeLogs(files if attempt is None else [])
    shipped: Counter[int] = Counter()
    while True:
        is_last_look = not is_growing()
        for text in local.new_lines(is_last=is_last_look):
            if rank in (None, SUPERVISOR_RANK):
                yield LogLine(attempt=NO_ATTEMPT, rank=SUPERVISOR_RANK, text=text)
        for line in _from_bucket(bucket, is_last=is_last_look):
            if attempt is not None or line.rank != SUPERVISOR_RANK:
                shipped[line.rank] += is_in_files(line.attempt)
                yield line
        if is_last_look:
            break
        time.sleep(SEGMENT_POLL_S)
    newest = max(job.attempt_numbers(), default=NO_ATTEMPT) if job and local.ranks else NO_ATTEMPT
    for number in sorted(local.ranks):
        if rank in (None, number):
            for text in local.ranks[number].after(shipped[number]):
                yield LogLine(attempt=newest, rank=number, text=text)


def _from_bucket(bucket: "LogReader | None", *, is_last: bool) -> Iterator[LogLine]:
    if bucket:
        yield from bucket.new_lines()
        if is_last:
            yield from bucket.last_lines()
