"""Log lines of a local job: ranks' from the bucket's segments, supervisors' from their own files on this machine.

A rank's line shows up once its segment is cut (1 MiB or 15 s). A supervisor's file holds all it ever said, also before it had an attempt
and what a SIGKILL kept it from shipping; so the bucket's copy of it is read only where an attempt is asked for.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stagecoach.contract.launch import LogLine
from stagecoach.contract.ledger import JobFolder

POLL_S = 0.1
SEGMENT_POLL_S = 1.0
SUPERVISOR_RANK = -1
NO_ATTEMPT = 0  # of a supervisor's own file, which is not cut by attempt


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


def rank_of(source: str) -> int:
    """`rank-3` is 3; every supervisor is -1."""
    return int(source.removeprefix("rank-")) if source.startswith("rank-") else SUPERVISOR_RANK


class SegmentReader:
    """New log lines of the ledger since the last look. Segments are immutable, so one that was read is never read again."""

    def __init__(self, job: JobFolder, *, rank: int | None, attempt: int | None) -> None:
        self.job, self.rank, self.attempt = job, rank, attempt
        self.seen: set[str] = set()
        self.rests: dict[tuple[int, str], bytes] = {}

    def new_lines(self) -> Iterator[LogLine]:
        """Whole lines; a line cut by a segment's end waits for the next segment."""
        for attempt in self.job.attempt_numbers() if self.attempt is None else [self.attempt]:
            for source in self.job.sources("logs", attempt):
                if self._is_wanted(source):
                    yield from self._new_lines_of(attempt, source)

    def last_lines(self) -> Iterator[LogLine]:
        """What stands after the last line's end, once nothing more will come."""
        for (attempt, source), rest in sorted(self.rests.items()):
            if rest:
                yield LogLine(attempt=attempt, rank=rank_of(source), text=rest.decode("utf-8", "replace"))

    def _is_wanted(self, source: str) -> bool:
        if self.rank is None:
            return source.startswith("rank-") or self.attempt is not None
        return rank_of(source) == self.rank

    def _new_lines_of(self, attempt: int, source: str) -> Iterator[LogLine]:
        for key in self.job.segments("logs", attempt, source):
            if key not in self.seen:
                self.seen.add(key)
                body = self.rests.get((attempt, source), b"") + self.job.store.read(key)
                *lines, self.rests[attempt, source] = body.split(b"\n")
                for line in lines:
                    yield LogLine(attempt=attempt, rank=rank_of(source), text=line.decode("utf-8", "replace"))


class FileReader:
    """New lines of the nodes' own files since the last look."""

    def __init__(self, paths: list[Path]) -> None:
        self.places = dict.fromkeys(paths, 0)

    def new_lines(self, *, is_last: bool = False) -> Iterator[LogLine]:
        for path, place in self.places.items():
            try:
                with path.open("rb") as file:
                    file.seek(place)
                    body = file.read()
            except FileNotFoundError:
                continue
            whole = body if is_last else body[: body.rfind(b"\n") + 1]
            self.places[path] = place + len(whole)
            for line in whole.decode("utf-8", "replace").removesuffix("\n").split("\n") if whole else ():
                yield LogLine(attempt=NO_ATTEMPT, rank=SUPERVISOR_RANK, text=line)


def job_lines(
    job: JobFolder | None, files: list[Path], *, rank: int | None, attempt: int | None, is_growing: Callable[[], bool]
) -> Iterator[LogLine]:
    """The lines of one job, until `is_growing` says no. `job` is None when it has no folder in a bucket."""
    from_files = FileReader(files if attempt is None and rank in (None, SUPERVISOR_RANK) else [])
    from_bucket = None
    if job is not None and not (rank == SUPERVISOR_RANK and attempt is None):
        from_bucket = SegmentReader(job, rank=rank, attempt=attempt)
    while True:
        is_last_look = not is_growing()
        yield from from_files.new_lines(is_last=is_last_look)
        if from_bucket:
            yield from from_bucket.new_lines()
        if is_last_look:
            break
        time.sleep(SEGMENT_POLL_S)
    if from_bucket:
        yield from from_bucket.last_lines()
