"""A curve of any length in bounded memory: steps fall into bins, each keeps mean, least and greatest value."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stagecoach.report.numbers import finite


@dataclass(slots=True)
class Bin:
    """The steps of one bin."""

    steps: float = 0.0  # summed, for the mean
    total: float = 0.0
    count: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, step: int, value: float) -> None:
        self.steps += step
        self.total += value
        self.count += 1
        self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass(frozen=True, slots=True)
class Point:
    """The mean over the steps of a bin, and how far they spread."""

    step: float
    value: float
    low: float
    high: float


@dataclass(slots=True)
class Series:
    """One attempt's values by step. `kept` is what the next attempt went on from, `redone` what was made again."""

    width: int  # steps in a bin
    kept: dict[int, Bin] = field(default_factory=dict)
    redone: dict[int, Bin] = field(default_factory=dict)

    def add(self, step: int, value: float, *, is_kept: bool) -> None:
        bins = self.kept if is_kept else self.redone
        number = step // self.width
        found = bins.get(number)
        if found is None:
            found = bins[number] = Bin()
        found.add(step, value)

    def rewind(self, to_step: int) -> None:
        """The attempt itself went back: whole bins behind that step count as redone."""
        for number in [n for n in self.kept if n * self.width > to_step]:
            self.redone[number] = self.kept.pop(number)


def points(bins: dict[int, Bin]) -> list[Point]:
    """In order of their steps."""
    ordered = (bins[number] for number in sorted(bins))
    return [Point(step=b.steps / b.count, value=b.total / b.count, low=b.low, high=b.high) for b in ordered if b.count]


@dataclass(slots=True)
class Curves:
    """All series of one stage, by name and then by attempt. Steps at or behind `kept_until[attempt]` were done again by a later one."""

    width: int
    kept_until: dict[int, float]
    series: dict[str, dict[int, Series]] = field(default_factory=dict)
    not_finite: int = 0
    most_names: int = 64  # a bucket is not trusted to name few

    def add(self, attempt: int, name: str, step: int, value: object) -> None:
        """Takes finite numbers; counts the others."""
        number = finite(value)
        if number is None:
            self.not_finite += value is not None
            return
        by_attempt = self.series.get(name)
        if by_attempt is None:
            if len(self.series) >= self.most_names:
                return
            by_attempt = self.series[name] = {}
        found = by_attempt.get(attempt)
        if found is None:
            found = by_attempt[attempt] = Series(self.width)
        found.add(step, number, is_kept=step <= self.kept_until.get(attempt, math.inf))

    def rewind(self, attempt: int, to_step: int) -> None:
        for by_attempt in self.series.values():
            if attempt in by_attempt:
                by_attempt[attempt].rewind(to_step)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.series if name.startswith(prefix))

    def kept(self, name: str) -> list[Point]:
        """The line that counts: attempts one after the other, the last one wins."""
        by_attempt = self.series.get(name, {})
        found = [point for attempt in sorted(by_attempt) for point in points(by_attempt[attempt].kept)]
        return sorted(found, key=lambda point: point.step)

    def redone(self, name: str) -> Iterator[list[Point]]:
        """Each attempt's steps that were made again."""
        by_attempt = self.series.get(name, {})
        for attempt in sorted(by_attempt):
            found = points(by_attempt[attempt].redone)
            if found:
                yield found


def kept_until(resumed: Iterable[tuple[int, int]]) -> dict[int, float]:
    """By attempt: up to which step its work was kept. `resumed` holds (attempt, resumed_from_step); later attempts decide."""
    until: dict[int, float] = {}
    least = math.inf
    for attempt, step in sorted(resumed, reverse=True):
        until[attempt] = least
        least = min(least, step)
    return until
