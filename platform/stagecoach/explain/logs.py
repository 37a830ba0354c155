"""The log of a job out of its segments: all ranks of all attempts merged, line by line.

Lines carry no order between ranks, and clocks of machines are not trusted for one. Segments are cut every 15 s with new content, so lines
are merged by attempt, then by the segment's number, then by rank; inside one rank the order is exact.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stagecoach.contract.launch import LogLine
from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.contract.names import whole_number
from stagecoach.storage import ObjectCorrupt

SUPERVISOR_RANK = -1


def rank_of(source: str) -> int:
    """`rank-3` is 3, the supervisors' are -1."""
    number = whole_number(source.removeprefix("rank-"))
    return SUPERVISOR_RANK if number is None else number


def node_of(source: str) -> int:
    """`supervisor` is node 0's, `supervisor-3` node 3's."""
    return whole_number(source.removeprefix(f"{SUPERVISOR}-")) or 0 if source.startswith(SUPERVISOR) else 0


@dataclass
class LogReader:
    """New lines since the last look. Segments are written once, so one that was read is never read again."""

    folder: JobFolder
    rank: int | None = None  # None: all, and the supervisor
    attempt: int | None = None
    _read: dict[tuple[int, str], int] = field(default_factory=dict)  # how many segments of a source have been read
    _rests: dict[tuple[int, str], bytes] = field(default_factory=dict)  # a line that the segment's end cut

    def new_lines(self) -> Iterator[LogLine]:
        """Whole lines only: one cut by a segment's end waits for the next segment."""
        for attempt in self.folder.attempt_numbers() if self.attempt is None else [self.attempt]:
            for source, key in self._new_segments(attempt):
                place = (attempt, source)
                *lines, rest = (self._rests.get(place, b"") + self._body(key)).split(b"\n")
                self._rests[place] = rest
                self._read[place] = self._read.get(place, 0) + 1
                yield from (_line(attempt, source, line) for line in lines)

    def last_lines(self) -> Iterator[LogLine]:
        """What stands after the last line's end, once nothing more will come."""
        for (attempt, source), rest in sorted(self._rests.items()):
            if rest:
                yield _line(attempt, source, rest)
        self._rests.clear()

    def _body(self, key: str) -> bytes:
        """A damaged segment is said in its place; the others are as good as ever."""
        try:
            return self.folder.store.read(key)
        except ObjectCorrupt as damaged:
            return f"(lines are missing here: {damaged})\n".encode()

    def _new_segments(self, attempt: int) -> list[tuple[str, str]]:
        """(source, key) in reading order."""
        found: list[tuple[int, int, str, str]] = []
        for source in self.folder.sources("logs", attempt):
            rank = rank_of(source)
            if self.rank is None or rank == self.rank:
                keys = self.folder.segments("logs", attempt, source)
                done = self._read.get((attempt, source), 0)
                found += [(number, rank, source, key) for number, key in enumerate(keys) if number >= done]
        return [(source, key) for _, _, source, key in sorted(found)]


def has_ended(folder: JobFolder) -> bool:
    """True when no further line can come unless somebody submits the job again."""
    numbers = folder.attempt_numbers()
    claims = folder.submissions()
    if claims and (state := folder.submission_state(claims[-1].submission)) is not None and state.state == "ended":
        return True
    if not numbers:
        return False
    end = folder.attempt_end(numbers[-1])
    start = folder.attempt_start(numbers[-1])
    is_newest = not claims or start is None or start.submission >= claims[-1].submission
    return end is not None and not end.restarts_in_place and is_newest


def readable(text: str) -> str:
    """A JSON line of our own log as a person reads it; any other line as it is."""
    if not text.startswith('{"'):
        return text
    try:
        line: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(line.get("message"), str) or "level" not in line:
        return text
    return f"{line['level']}: {line['message']}" + (f"\n{line['exception']}".rstrip() if line.get("exception") else "")


def prefix(line: LogLine) -> str:
    """Whose line it is: `1 rank 3`, `1 supervisor`, `1 supervisor-2` for node 2's (attempt first)."""
    if line.rank != SUPERVISOR_RANK:
        return f"{line.attempt} rank {line.rank}"
    return f"{line.attempt} {SUPERVISOR}" + (f"-{line.node}" if line.node else "")


def _line(attempt: int, source: str, line: bytes) -> LogLine:
    return LogLine(attempt=attempt, rank=rank_of(source), node=node_of(source), text=line.decode("utf-8", "replace").rstrip("\r"))
