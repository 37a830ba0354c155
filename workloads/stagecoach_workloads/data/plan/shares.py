"""Does what was consumed match the mixture? Achieved shares by source, kind and category over any window of steps.

The plan's sources take turns by systematic sampling, so a share by source or kind is exact to a unit or two a block; which category a
sample has is the shuffle's, so a share by category wanders by the sampling error sqrt(p (1 - p) / n).
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


class ShareMeter:
    """Adds up the rows of a window (`add` every step) and compares (`shares`, `lines`). The trainer logs `report()` and starts afresh."""

    def __init__(self, plan: DataPlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        self._units: Counter[int] = Counter()  # by source: rows or samples, what the mixture's weights count
        self._samples: Counter[tuple[int, int]] = Counter()  # by source and category
        self._steps = 0

    def add(self, rows: Iterable[Row]) -> None:
        """The global batch of one step."""
        self._steps += 1
        for row in rows:
            if self.plan.counts_rows:
                self._units[row.slices[0].source] += 1
            for part in row.slices:
                if part.start:
                    continue  # the rest of a document that was split is no further sample
                if not self.plan.counts_rows:
                    self._units[part.source] += 1
                self._samples[part.source, self._category_of(part.source, part.sample)] += 1

    def _category_of(self, source: int, sample: int) -> int:
        return int(self._categories[source][1][sample])

    @cached_property
    def _categories(self) -> list[tuple[list[str], np.ndarray]]:
        return [source.layout.index.categories for source in self.plan.sources]

    def shares(self) -> dict[str, dict[str, Share]]:
        """By `source` and `kind` of the mixture's unit; by `category` (named source/category) of that source's samples."""
        total = max(1, self._units.total())
        wanted = self.plan.weights
        by_source = {
            source.name: Share(wanted[number], self._units[number] / total, self._error(wanted[number], total))
            for number, source in enumerate(self.plan.sources)
        }
        kinds: dict[str, list[int]] = {}
        for number, source in enumerate(self.plan.sources):
            kinds.setdefault(source.layout.kind, []).append(number)
        by_kind = {
            kind: Share(
                sum(wanted[number] for number in numbers),
                sum(self._units[number] for number in numbers) / total,
                self._error(sum(wanted[number] for number in numbers), total),
            )
            for kind, numbers in kinds.items()
        }
        return {"source": by_source, "kind": by_kind, "category": dict(self._by_category())}

    def _by_category(self) -> Iterable[tuple[str, Share]]:
        for number, source in enumerate(self.plan.sources):
            names, of_samples = self._categories[number]
            held = np.bincount(of_samples, minlength=len(names)) / max(1, len(of_samples))
            seen = sum(self._samples[number, place] for place in range(len(names)))
            for place, name in enumerate(names):
                p = float(held[place])
                if seen:
                    error = max(math.sqrt(p * (1 - p) / seen), 1 / seen)
                    yield f"{source.name}/{name}", Share(p, self._samples[number, place] / seen, error)

    def _error(self, wanted: float, total: int) -> float:
        """Systematic sampling is exact to a unit a block; what a window cuts off is bounded by chance's own error."""
        return max(math.sqrt(wanted * (1 - wanted) / total), 1 / total)

    def report(self) -> dict[str, Any]:
        """A plain value for the log: [achieved, wanted] by source, kind and category, and in `off` what strays further than by chance."""
        found = self.shares()
        told = {group: {n: [round(s.achieved, 4), round(s.wanted, 4)] for n, s in shares.items()} for group, shares in found.items()}
        off = sorted(name for shares in found.values() for name, share in shares.items() if share.is_off)
        return {"steps": self._steps, **told, "off": off}
