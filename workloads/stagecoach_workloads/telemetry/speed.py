"""Rates over a moving window of steps, and what is left to do."""

from collections import deque
from dataclasses import dataclass

RATE_STEPS = 20  # steps of the window of rates
ETA_STEPS = 200  # of the time left: wide enough to hold saves and evaluations in their proportion


@dataclass(frozen=True, kw_only=True)
class Rates:
    """None until two steps are made: the first one compiles."""

    tokens_per_s: float | None = None
    images_per_s: float | None = None
    step_s: float | None = None
    mfu: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class _Mark:
    training_s: float  # on a clock that stands still during evaluations
    tokens: int
    images: int
    flops: float | None


class Speed:
    """`peak_flops`: of all ranks together, per second; None where it is not known."""

    def __init__(self, *, steps: int, peak_flops: float | None) -> None:
        self._steps, self._peak_flops = steps, peak_flops
        self._marks: deque[_Mark] = deque(maxlen=RATE_STEPS + 1)
        self._ends: deque[tuple[int, float]] = deque(maxlen=ETA_STEPS + 1)

    def add(self, step: int, *, now: float, evaluation_s: float, tokens: int, images: int, flops: float | None) -> Rates:
        """A step ended at `now`; `evaluation_s` were spent on evaluations so far. Returns the rates with it."""
        self._marks.append(_Mark(now - evaluation_s, tokens, images, flops))
        self._ends.append((step, now))
        return self.rates()

    def rewound(self) -> None:
        """Steps are to be made again: the time that is left is learned anew."""
        self._ends.clear()

    def rates(self) -> Rates:
        """Over the window."""
        if len(self._marks) < 2:
            return Rates()
        inside = list(self._marks)[1:]
        seconds = max(inside[-1].training_s - self._marks[0].training_s, 1e-9)
        flops = [mark.flops for mark in inside if mark.flops is not None]
        known = self._peak_flops is not None and len(flops) == len(inside)
        return Rates(
            tokens_per_s=sum(mark.tokens for mark in inside) / seconds,
            images_per_s=sum(mark.images for mark in inside) / seconds,
            step_s=seconds / len(inside),
            mfu=sum(flops) / seconds / self._peak_flops if known and self._peak_flops else None,
            eta_s=self._eta(),
        )

    def _eta(self) -> float | None:
        if not self._ends:
            return None
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        return max(0, self._steps - last) * (ended - began) / (last - first) if last > first else None
