"""What a worker is given: one microstep of one rank, with all it needs to know of its samples. Workers hold no index and no plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stagecoach_workloads.data.dataset import Dataset, Stretch
from stagecoach_workloads.data.plan.layout import Layout, Piece
from stagecoach_workloads.data.plan.source import block_starts
from stagecoach_workloads.data.plan.streams import Row, Slice


@dataclass(frozen=True, slots=True)
class Document:
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
        return [
            Task(step, number, len(microsteps), tuple(tuple(self._document(part) for part in rows[row].slices) for row in mine))
            for number, mine in enumerate(microsteps)
        ]

    def _document(self, part: Slice) -> Document:
        dataset, layout = self.datasets[part.source], self.layouts[part.source]
        return Document(
            source=part.source,
            sample=part.sample,
            epoch=part.epoch,
            start=part.start,
            stop=part.stop,
            stretch=dataset.stretch(part.sample),
            block=self._block(part.source, part.sample),
            pieces=tuple(layout.pieces(part.sample)),
        )

    def _block(self, source: int, sample: int) -> tuple[int, int]:
        index = self.datasets[source].index
        if source not in self._blocks:
            self._blocks[source] = block_starts(index.shard, index.offset)
        starts = self._blocks[source]
        place = int(np.searchsorted(starts, sample, side="right")) - 1
        first, last = int(starts[place]), int(starts[place + 1]) - 1
        offset = int(index.offset[first])
        return offset, int(index.offset[last] + index.length[last]) - offset
