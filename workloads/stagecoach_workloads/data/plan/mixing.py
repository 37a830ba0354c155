"""Which source each unit (row or sample) comes from: exact shares in every block, no state.

Systematic sampling: a block of B units gives source d floor(B * W_d + u) - floor(B * W_(d-1) + u) of them, where W are running
sums of the weights and u is the block's own uniform number. So every block is within one unit of its share, and the mean is exact.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from stagecoach.errors import DataError
from stagecoach_workloads.data.plan.keys import fractions, key_of, permutation


class Mixer:
    """Deals blocks of `block` units to sources."""

    def __init__(self, weights: Sequence[float], *, block: int, seed: int, label: str) -> None:
        total = sum(Fraction(weight) for weight in weights)
        if total <= 0:
            raise DataError("data.mixture.weights sum to 0; at least one source must have a weight")
        running = np.cumsum([float(Fraction(weight) / total) for weight in weights])
        running[-1] = 1.0
        self._edges = np.concatenate([[0.0], running]) * block
        self.block, self.num_sources = block, len(weights)
        self._key = key_of("mixture", seed, label)
        self._before = np.zeros((1, self.num_sources), np.int64)  # units of each source before block b

    def counts(self, first: int, stop: int) -> np.ndarray:
        """Units of each source in blocks first to stop: shape (blocks, sources)."""
        u = fractions(self._key, np.arange(first, stop))
        return np.diff(np.floor(self._edges[None, :] + u[:, None]).astype(np.int64), axis=1)

    def before(self, block: int) -> np.ndarray:
        """Units of each source in all blocks before this one."""
        known = len(self._before) - 1
        if block > known:
            more = np.cumsum(self.counts(known, max(block, known + 1024)), axis=0) + self._before[-1]
            self._before = np.concatenate([self._before, more])
        return self._before[block]

    def deal(self, block: int) -> np.ndarray:
        """The source of each unit of the block, in shuffled order."""
        counts = self.counts(block, block + 1)[0]
        sources = np.repeat(np.arange(self.num_sources), counts)
        return sources[permutation(self._key ^ key_of("deal", block), len(sources))]
