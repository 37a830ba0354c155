"""One source's order: blocks of about 4 MiB of consecutive samples are permuted, then samples within a window of blocks.

So a reader fetches whole blocks, and what it fetched is used soon: few requests, whatever the shuffle. Any place in any epoch is
reached without walking there.
"""

from collections import OrderedDict

import numpy as np

from stagecoach.errors import DataError
from stagecoach_workloads.data.plan.keys import key_of, mix, permutation
from stagecoach_workloads.data.plan.layout import Layout

BLOCK_BYTES = 4 * 1024 * 1024
_CHUNK = 4_000_000


class Source:
    """Samples of one dataset in shuffled order, epoch after epoch."""

    def __init__(self, name: str, layout: Layout, *, seed: int, fingerprint: str, shuffle_blocks: int) -> None:
        """Raises DataError for an empty dataset."""
        self.name, self.layout = name, layout
        self.num_samples = layout.index.num_samples
        if not self.num_samples:
            raise DataError(f"dataset `{name}` has no samples")
        self._key = key_of("order", seed, name, fingerprint)
        self.identity = f"{fingerprint} {shuffle_blocks} {layout.identity}"  # all that decides its order and its sizes
        self._blocks = block_starts(layout.index.shard, layout.index.offset)
        self._window = shuffle_blocks
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(sample numbers, epochs) of places first, first + 1, ... of the endless order."""
        numbers, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, place = divmod(first + done, self.num_samples)
            group, offset = self._find(epoch, place)
            taken = min(count - done, len(group) - offset)
            numbers[done : done + taken] = group[offset : offset + taken]
            epochs[done : done + taken] = epoch
            done += taken
        return numbers, epochs

    def _find(self, epoch: int, place: int) -> tuple[np.ndarray, int]:
        """The shuffle window that holds `place` of the epoch, and where in it."""
        order, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        before = int(ends[group - 1]) if group else 0
        return self._group(epoch, group, order), place - before

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of blocks, and the running count of samples at the end of each window of blocks."""
        if epoch not in self._epochs:
            order = permutation(self._key ^ key_of("blocks", epoch), len(self._blocks) - 1)
            counts = np.diff(self._blocks)[order]
            ends = np.cumsum(np.add.reduceat(counts, np.arange(0, len(counts), self._window)))
            self._epochs[epoch] = (order.astype(np.int32), ends)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int, order: np.ndarray) -> np.ndarray:
        if (epoch, group) not in self._groups:
            blocks = order[group * self._window : (group + 1) * self._window]
            numbers = np.concatenate([np.arange(self._blocks[block], self._blocks[block + 1]) for block in blocks])
            self._groups[epoch, group] = numbers[np.argsort(mix(self._key ^ key_of("samples", epoch), numbers))]
            if len(self._groups) > 3:
                self._groups.popitem(last=False)
        return self._groups[epoch, group]


def block_starts(shard: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """First sample of each block, and the number of samples as the last entry. A block never crosses a shard."""
    found = [np.zeros(1, np.int64)]
    for first in range(0, len(shard), _CHUNK):  # in chunks, so that a hundred million rows need no large temporaries
        low = max(0, first - 1)
        number = shard[low : first + _CHUNK].astype(np.int64) << 24 | offset[low : first + _CHUNK] // BLOCK_BYTES
        found.append(np.flatnonzero(np.diff(number)) + low + 1)
    return np.concatenate([*found, np.array([len(shard)])])
