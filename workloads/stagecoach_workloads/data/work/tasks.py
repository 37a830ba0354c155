"""What a worker is given: one microstep of one rank, with all it needs to know of its samples. Workers hold no index and no plan.

Thousands of these go to worker processes every second: named tuples are pickled, and made, several times as fast as data classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from stagecoach_workloads.data.dataset import Dataset, Stretch
from stagecoach_workloads.data.plan.layout import Layout, Piece
from stagecoach_workloads.data.plan.source import block_starts
from stagecoach_workloads.data.plan.streams import Row, Slice


class Document(NamedTuple):
    """One slice to collate. `block` is the (offset, length) of the stretch of the shard that the shuffle keeps together."""

    source: int
    sample: int
    epoch: int
    start: int
    stop: int
    stretch: Stretch
    block: tuple[int, int]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One microstep's rows on one rank. `of` microsteps belong to the step."""

    step: int
    microstep: int
    of: int
    rows: tuple[tuple[Document, ...], ...]


@dataclass
class TaskMaker:
    """Looks up what the plan's slices are in the indexes."""

    datasets: Sequence[Dataset]
    layouts: Sequence[Layout]
    _blocks: dict[int, np.ndarray] = field(default_factory=dict)

    def tasks(self, step: int, rows: Sequence[Row], microsteps: Sequence[Sequence[int]]) -> list[Task]:
        """The rank's tasks of one step, one a microstep (some may have no rows)."""
        documents = iter(self._documents([part for mine in microsteps for row in mine for part in rows[row].slices]))
        return [
            Task(step, number, len(microsteps), tuple(tuple(islice(documents, len(rows[row].slices))) for row in mine))
            for number, mine in enumerate(microsteps)
        ]

    def _documents(self, parts: Sequence[Slice]) -> list[Document]:
        """In the same order, but each source's are looked up together."""
        by_source: dict[int, list[int]] = {}
        for place, part in enumerate(parts):
            by_source.setdefault(part.source, []).append(place)
        found: dict[int, Document] = {}
        for source, places in by_source.items():
            samples = [parts[place].sample for place in places]
            looked_up = zip(places, self.datasets[source].stretches(samples), self._blocks_of(source, samples), strict=True)
            for place, stretch, block in looked_up:
                found[place] = self._document(parts[place], stretch, block)
        return [found[place] for place in range(len(parts))]

    def _document(self, part: Slice, stretch: Stretch, block: tuple[int, int]) -> Document:
        pieces = tuple(self.layouts[part.source].pieces(part.sample))
        return Document(part.source, part.sample, part.epoch, part.start, part.stop, stretch, block, pieces)

    def _blocks_of(self, source: int, samples: Sequence[int]) -> list[tuple[int, int]]:
        """The block of each sample."""
        index = self.datasets[source].index
        if source not in self._blocks:
            self._blocks[source] = block_starts(index.shard, index.offset)
        starts = self._blocks[source]
        places = np.searchsorted(starts, samples, side="right")
        offsets, last = index.offset[starts[places - 1]], starts[places] - 1
        return list(zip(offsets.tolist(), (index.offset[last] + index.length[last] - offsets).tolist(), strict=True))
