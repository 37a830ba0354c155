"""Does what was consumed match the mixture? Achieved shares by source, kind and category over any window of steps.

The plan's sources take turns by systematic sampling, so a share by source or kind is exact to a unit or two a block; which category a
sample has is the shuffle's, so a share by category wanders by the sampling error sqrt(p (1 - p) / n). Here n is not the number of samples:
packing puts documents of similar length into one row, and categories differ in length, so a row's samples come and go together. It is
Kish's effective number for clusters that may each be all of one name: (sum of rows' samples)^2 / (sum of their squares).
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.plan.streams import Row

ERRORS_ALLOWED = 4.0  # sampling errors: one window in 16,000 strays further by chance


@dataclass(frozen=True, slots=True)
class Share:
    """One name's share of a window. `error` is the sampling error of one standard deviation."""

    wanted: float
    achieved: float
    error: float

    @property
    def is_off(self) -> bool:
        return abs(self.achieved - self.wanted) > ERRORS_ALLOWED * self.error


@dataclass(slots=True)
class _Clusters:
    """What was drawn together, a row's samples or one row, and how far it lets a share stray."""

    total: int = 0
    squares: int = 0
    largest: int = 0

    def add(self, size: int) -> None:
        self.total += size
        self.squares += size * size
        self.largest = max(self.largest, size)

    def error(self, wanted: float) -> float:
        """The sampling error of a share. What a window cuts off, and names that are rare, stray by a whole cluster."""
        return max(math.sqrt(wanted * (1 - wanted) * self.squares), self.largest, 1) / max(1, self.total)


class ShareMeter:
    """Adds up the rows of a window (`add` every step) and compares (`shares`, `lines`). The trainer logs `report()` and starts afresh."""

    def __init__(self, plan: DataPlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        self._units: Counter[int] = Counter()  # by source: rows or samples, what the mixture's weights count
        self._samples: Counter[tuple[int, int]] = Counter()  # by source and category
        self._of_units = _Clusters()
        self._of_samples = [_Clusters() for _ in self.plan.sources]
        self._steps = 0

    def add(self, rows: Iterable[Row]) -> None:
        """The global batch of one step."""
        self._steps += 1
        for row in rows:
            begun = [part for part in row.slices if not part.start]  # the rest of a document that was split is no further sample
            by_source = Counter(part.source for part in begun)
            units = Counter([row.slices[0].source]) if self.plan.counts_rows else by_source
            self._units += units
            self._of_units.add(units.total())
            for source, count in by_source.items():
                self._of_samples[source].add(count)
            self._samples.update((part.source, self._category_of(part.source, part.sample)) for part in begun)

    def _category_of(self, source: int, sample: int) -> int:
        return int(self._categories[source][1][sample])

    @cached_property
    def _categories(self) -> list[tuple[list[str], np.ndarray]]:
        return [source.layout.index.categories for source in self.plan.sources]

    def shares(self) -> dict[str, dict[str, Share]]:
        """By `source` and `kind` of the mixture's unit; by `category` (named source/category) of that source's samples."""
        wanted = self.plan.weights
        by_source = {source.name: self._share(wanted[number], self._units[number]) for number, source in enumerate(self.plan.sources)}
        kinds: dict[str, list[int]] = {}
        for number, source in enumerate(self.plan.sources):
            kinds.setdefault(source.layout.kind, []).append(number)
        by_kind = {
            kind: self._share(sum(wanted[number] for number in numbers), sum(self._units[number] for number in numbers))
            for kind, numbers in kinds.items()
        }
        return {"source": by_source, "kind": by_kind, "category": dict(self._by_category())}

    def _share(self, wanted: float, units: int) -> Share:
        return Share(wanted, units / max(1, self._of_units.total), self._of_units.error(wanted))

    def _by_category(self) -> Iterable[tuple[str, Share]]:
        for number, source in enumerate(self.plan.sources):
            names, of_samples = self._categories[number]
            held = np.bincount(of_samples, minlength=len(names)) / max(1, len(of_samples))
            seen = self._of_samples[number]
            for place, name in enumerate(names):
                if seen.total:
                    p = float(held[place])
                    yield f"{source.name}/{name}", Share(p, self._samples[number, place] / seen.total, seen.error(p))

    def report(self) -> dict[str, Any]:
        """A plain value for the log: [achieved, wanted] by source, kind and category, and in `off` what strays further than by chance."""
        found = self.shares()
        told = {group: {n: [round(s.achieved, 4), round(s.wanted, 4)] for n, s in shares.items()} for group, shares in found.items()}
        off = sorted(name for shares in found.values() for name, share in shares.items() if share.is_off)
        return {"steps": self._steps, **told, "off": off}
