"""How a preflight looks while it runs (stderr) and when it is done (stdout)."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from stagecoach.cli.tables import Cell, Row, print_table
from stagecoach.contract.launch import JobState
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.preflight import PHASES, Check, PreflightPhases, PreflightReport, Problem, RankReport
from stagecoach.contract.records import decode
from stagecoach.errors import StagecoachError

if TYPE_CHECKING:
    from rich.status import Status

COLUMNS: tuple[tuple[str, Check | None], ...] = (
    ("rank", None), ("machine", "present"), ("device", "device"), ("GFLOP/s", "matmul"), ("of peers", "matmul"),
    ("all-reduce GB/s", "all_reduce"), ("clock ms", "clock"), ("memory GB", "memory"), ("disk GB", "disk"), ("shm GB", "shm"),
    ("bucket w/r MB/s", "bucket"), ("verdict", None),
)  # fmt: skip
MAX_ROWS = 64  # beyond, only the ranks that have a problem
STYLES = {"slow": "yellow", "broken": "bold red"}


class Narrator:
    """Says on stderr what the job is doing: one line that changes on a terminal, a line per change elsewhere."""

    def __init__(self, uri: str) -> None:
        self.uri, self.last = uri, ""
        self._started = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> "Narrator":
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("preflight")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Says it once. A stderr that is gone (a closed terminal, `2>&1 | head`) must not keep us from watching or cancelling the job."""
        try:
            if self._status is not None:
                self._status.update(f"{time.monotonic() - self._started:.0f} s  {text}")
            elif text != self.last:
                click.echo(f"{time.monotonic() - self._started:6.1f} s  {text}", err=True)
        except OSError:
            pass
        self.last = text

    def follow(self, folder: JobFolder, state: JobState) -> None:
        """The phase of every rank where rank 0 has said so, else the launcher's."""
        phases = read_phases(folder)
        self.say(by_phase(phases) if phases else f"{state.phase.lower()}{f' ({state.reason})' if state.reason else ''}")


def read_phases(folder: JobFolder) -> Mapping[str, str]:
    """rank -> phase; nothing before rank 0 has published it, or when it cannot be read just now."""
    try:
        return decode(PreflightPhases, folder.store.read(PHASES), uri=folder.store.uri_of(PHASES)).phases
    except StagecoachError:
        return {}


def by_phase(phases: Mapping[str, str]) -> str:
    """`matmul: ranks 0-3; bucket: rank 4`."""
    ranks: dict[str, list[int]] = {}
    for rank, phase in sorted(phases.items(), key=lambda item: int(item[0])):
        ranks.setdefault(phase, []).append(int(rank))
    return "; ".join(f"{phase}: rank{'s' if len(who) > 1 else ''} {spans(who)}" for phase, who in ranks.items())


def spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] is `0-2, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def print_report(report: PreflightReport) -> None:
    """A row per rank, bad cells coloured (marked with ! where there is no colour), then the verdict and what to do."""
    if report.ranks:
        missing = [problem for problem in report.problems if problem.check == "present" and problem.rank is not None]
        rows: dict[int, Row] = {rank.rank: rank_row(rank, report.problems) for rank in report.ranks}
        rows |= {problem.rank: missing_row(problem) for problem in missing if problem.rank is not None}
        shown = (
            rows
            if len(rows) <= MAX_ROWS
            else {rank: rows[rank] for rank in rows if any(problem.rank == rank for problem in report.problems)}
        )
        print_table([name for name, _ in COLUMNS], [shown[rank] for rank in sorted(shown)], title=report.name)
        if len(shown) < len(rows):
            click.echo(f"{len(rows) - len(shown)} ranks without a problem of their own are left out; report.json has them", err=True)
    click.secho(report.verdict, fg="green" if report.fit else "red", bold=True)
    for remedy in dict.fromkeys(problem.do for problem in report.problems):
        click.echo(f"  {remedy}")


def rank_row(rank: RankReport, problems: tuple[Problem, ...]) -> Row:
    """One rank's measurements."""
    mine = {problem.check: problem for problem in problems if problem.rank in (rank.rank, None)}
    texts = (
        str(rank.rank),
        rank.machine,
        rank.device.name if rank.device else "-",
        number(rank.matmul, "gflops", ",.1f"),
        number(rank.matmul, "relative", ".0%"),
        number(rank.all_reduce, "gb_s", ".2f"),
        f"{round(rank.clock.skew_s * 1000):+d}" if rank.clock and rank.clock.skew_s is not None else "-",
        number(rank.memory, "free_gb", ".1f"),
        number(rank.disk, "free_gb", ".1f"),
        number(rank.shm, "free_gb", ".1f"),
        f"{rank.bucket.write_mb_s:.0f} / {rank.bucket.read_mb_s:.0f}" if rank.bucket else "-",
        ", ".join(sorted({problem.severity for problem in mine.values()})) or "ok",
    )
    return [marked(text, mine.get(check) if check else None) for text, (_, check) in zip(texts, COLUMNS, strict=True)]


def missing_row(problem: Problem) -> Row:
    """A rank that never reported."""
    blank = ["-"] * (len(COLUMNS) - 3)
    return [str(problem.rank), marked(problem.machine or "?", problem), *blank, Cell("missing", STYLES["broken"])]


def marked(text: str, problem: Problem | None) -> Cell:
    if problem is None:
        return Cell(text)
    return Cell(text if sys.stdout.isatty() else f"{text} !", STYLES[problem.severity])


def number(part: Any, name: str, how: str) -> str:
    value = getattr(part, name, None)
    return "-" if value is None else format(value, how)
