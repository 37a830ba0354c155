"""Names a rank that is slow for its share of the work. The data plan knows the shares, so no extra measurement is needed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FACTOR = 1.3  # times the median rank's time for the same work
WINDOWS = 5  # in a row
WINDOW_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rank that became slow, or stopped being so. `ratio`: its time for the same work over the median rank's, last window."""

    rank: int
    ratio: float
    is_slow: bool


class Stragglers:
    """Looks at windows of steps: each rank's own seconds over its planned load, against the median rank's."""

    def __init__(self, ranks: int) -> None:
        self._seconds, self._loads = [0.0] * ranks, [0.0] * ranks
        self._steps = 0
        self._streaks = [0] * ranks
        self.slow: set[int] = set()

    def add(self, seconds: Sequence[float], loads: Sequence[float] | None = None) -> list[Finding]:
        """One step. `loads`: planned work by rank in any unit; None: all alike. Returns what changed, mostly nothing."""
        for rank, own in enumerate(seconds):
            self._seconds[rank] += own
            self._loads[rank] += loads[rank] if loads is not None else 1.0
        self._steps += 1
        if self._steps < WINDOW_STEPS:
            return []
        found = self._judge()
        self._steps = 0
        self._seconds, self._loads = [0.0] * len(self._seconds), [0.0] * len(self._loads)
        return found

    def _judge(self) -> list[Finding]:
        cost = {rank: self._seconds[rank] / load for rank, load in enumerate(self._loads) if load > 0}
        if len(cost) < 2:
            return []
        median = max(statistics.median_low(cost.values()), 1e-12)  # low: of two ranks the slower must not be half of its own measure
        found = []
        for rank, own in cost.items():
            ratio = own / median
            self._streaks[rank] = self._streaks[rank] + 1 if ratio > FACTOR else 0
            if self._streaks[rank] == WINDOWS and rank not in self.slow:
                self.slow.add(rank)
                found.append(Finding(rank=rank, ratio=ratio, is_slow=True))
            elif self._streaks[rank] == 0 and rank in self.slow:
                self.slow.discard(rank)
                found.append(Finding(rank=rank, ratio=ratio, is_slow=False))
        return found
