"""Where the time of a rank goes, as a ledger whose entries sum to its wall time."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from stagecoach_workloads import warm

Bucket = Literal["init", "restore", "data_wait", "compute", "checkpoint_stall", "evaluation"]
OTHER = "other"  # what is outside any bucket
NAMES: tuple[str, ...] = (*get_args(Bucket), OTHER)


class Buckets:
    """Every moment belongs to the innermost open bucket. For one thread, the one that trains."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter, init_s: float = 0.0, restore_s: float = 0.0) -> None:
        """`init_s`, `restore_s`: what had passed before, counted as that."""
        self._clock = clock
        self._seconds = dict.fromkeys(NAMES, 0.0)
        self._seconds |= {"init": init_s, "restore": restore_s}
        self._open: list[str] = []
        self._since = clock()

    @contextmanager
    def bucket(self, name: Bucket) -> Iterator[None]:
        """Counts the block's time as `name`; a bucket opened inside pauses this one. Raises ValueError for a name that is none."""
        if name not in NAMES[:-1]:
            raise ValueError(f"no bucket {name!r}; there are {', '.join(NAMES[:-1])}")
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """By bucket, up to this moment."""
        self._charge()
        return dict(self._seconds)

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self._open[-1] if self._open else OTHER] += now - self._since
        self._since = now


def seconds_since_start() -> float:
    """How long this process lives, by the kernel's account; 0 where that is not told. Where it was started ahead of need, since it was told
    who it is: what it waited before, hours maybe, is time of the attempt before."""
    if warm.told_at is not None:
        return time.monotonic() - warm.told_at
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
