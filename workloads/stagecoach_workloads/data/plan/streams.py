"""Endless rows: documents from one source, or from the mixture, in windows that are packed by themselves and drain completely."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stagecoach.errors import DataError
from stagecoach_workloads.data.plan.keys import key_of, permutation
from stagecoach_workloads.data.plan.layout import cut
from stagecoach_workloads.data.plan.mixing import Mixer
from stagecoach_workloads.data.plan.packing import pack
from stagecoach_workloads.data.plan.source import Source

_SAMPLED = 4096  # samples that estimate a source's mean size
_CACHED = 4  # packed windows kept


@dataclass(frozen=True, slots=True)
class Slice:
    """A document's part in a row: positions start to stop of the sample's layout, with so many encoded images."""

    source: int
    sample: int
    epoch: int
    start: int
    stop: int
    images: int


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch."""

    slices: tuple[Slice, ...]

    @property
    def positions(self) -> int:
        """Filled positions."""
        return sum(part.stop - part.start for part in self.slices)

    @property
    def images(self) -> int:
        """Encoded images."""
        return sum(part.images for part in self.slices)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a row holds, and what happens to a document that is larger."""

    positions: int
    images: int
    over: str  # truncate, split, drop
    window_rows: int


@dataclass
class Stream:
    """Rows 0, 1, 2, ... of one or several sources. `window` samples are packed at a time."""

    name: str
    sources: Sequence[Source]
    numbers: Sequence[int]  # the sources' numbers in the plan
    budget: Budget
    seed: int
    mixer: Mixer | None = None  # None: one source
    window: int = 0  # 0: chosen so that a window has about budget.window_rows rows
    _dropped: dict[int, int] = field(default_factory=dict)  # by window, so that one that is packed again counts once
    _ends: list[int] = field(default_factory=list)  # rows at the end of each packed window, from `_anchor` on
    _anchor: tuple[int, int] = (0, 0)  # (window, rows before it)
    _marks: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # sorted (window, rows before it)
    _packed: OrderedDict[int, list[Row]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._key = key_of("rows", self.seed, self.name)
        if not self.window:
            self.window = self._choose_window()

    @property
    def dropped(self) -> int:
        """Documents that the windows packed so far left out because they are larger than a row."""
        return sum(self._dropped.values())

    def rows(self, first: int, count: int) -> list[Row]:
        """Rows first, first + 1, ... Raises DataError when whole windows hold nothing that fits a row."""
        found: list[Row] = []
        while len(found) < count:
            window, before = self.find(first + len(found))
            packed = self.packed(window)
            found += packed[first + len(found) - before :][: count - len(found)]
        return found

    def find(self, row: int) -> tuple[int, int]:
        """(window, rows before it) of the window that holds this row. Windows after the anchor are packed as far as needed."""
        self._jump(row)
        start, before = self._anchor
        empty = 0
        while not self._ends or self._ends[-1] <= row:
            size = len(self.packed(start + len(self._ends)))
            empty = 0 if size else empty + 1
            if empty > 100:
                raise DataError(
                    f"data.packing: none of the last {100 * self.window:,} samples of `{self.name}` fits a row of {self.budget.positions} "
                    f"positions and {self.budget.images} images (batch.seq_len, data.packing.images_per_row)"
                )
            self._ends.append((self._ends[-1] if self._ends else before) + size)
        place = bisect_right(self._ends, row)
        return start + place, self._ends[place - 1] if place else before

    def _jump(self, row: int) -> None:
        """Anchors at the last known window that begins at or before the row, unless the row is within what is packed, or next to it."""
        start, before = self._anchor
        reached = self._ends[-1] if self._ends else before
        if before <= row < reached:
            return
        place = bisect_right(self._marks, row, key=lambda mark: mark[1]) - 1
        window, rows_before = self._marks[place]
        if row < before or window > start + len(self._ends):
            self.go_to(window, rows_before)

    def go_to(self, window: int, before: int) -> None:
        """Anchors the stream at a window that a state names."""
        self.learn([])
        self._anchor, self._ends = (window, before), []

    def _known(self) -> list[tuple[int, int]]:
        """Windows of the present stretch: those after the anchor, as far as packed."""
        start, before = self._anchor
        return [(start + place, rows) for place, rows in enumerate([before, *self._ends])]

    def marks(self) -> list[tuple[int, int]]:
        """(window, rows before it) of all windows that are known."""
        self.learn([])
        return list(self._marks)

    def learn(self, marks: Iterable[Sequence[int]]) -> None:
        """Takes up windows that are known from elsewhere. Raises DataError when they contradict each other."""
        known = dict(self._marks) | dict(self._known())
        for window, before in marks:
            if known.setdefault(window, before) != before:
                raise DataError(
                    f"data state of `{self.name}`: window {window:,} begins at row {known[window]:,} and at row {before:,}; "
                    "one of the states is of another plan"
                )
        self._marks = sorted(known.items())

    def forget(self) -> None:
        """Back to what a fresh stream knows."""
        self._anchor, self._ends, self._marks = (0, 0), [], [(0, 0)]
        self._packed.clear()
        self._dropped.clear()

    def packed(self, window: int) -> list[Row]:
        """The window's rows, in shuffled order."""
        if window not in self._packed:
            self._packed[window] = self._pack(window)
            if len(self._packed) > _CACHED:
                self._packed.popitem(last=False)
        return self._packed[window]

    def _pack(self, window: int) -> list[Row]:
        slices, dropped = self._slices(window * self.window, self.window)
        if dropped:
            self._dropped[window] = dropped
        rows = pack(
            [part.stop - part.start for part in slices],
            [part.images for part in slices],
            max_positions=self.budget.positions,
            max_images=self.budget.images,
        )
        order = permutation(self._key ^ key_of(window), len(rows))
        return [Row(tuple(slices[number] for number in sorted(rows[place]))) for place in order]

    def _slices(self, first: int, count: int) -> tuple[list[Slice], int]:
        """Documents of places first, first + 1, ... cut to the budgets, and how many of them were dropped."""
        found: list[list[Slice]] = [[] for _ in range(count)]
        for source, number, places, cursor in self._draws(first, count):
            samples, epochs = source.take(cursor, len(places))
            positions, images = source.layout.sizes(samples)
            fits = (positions <= self.budget.positions) & (images <= self.budget.images) & (positions > 1)
            columns = zip(
                places.tolist(), samples.tolist(), epochs.tolist(), positions.tolist(), images.tolist(), fits.tolist(), strict=True
            )
            for place, sample, epoch, size, pictures, fit in columns:
                whole = Slice(number, sample, epoch, 0, size, pictures)
                found[place] = [whole] if fit else self._cut(source, whole)
        return [part for parts in found for part in parts], sum(not parts for parts in found)

    def _draws(self, first: int, count: int) -> list[tuple[Source, int, np.ndarray, int]]:
        """(source, its number, places among `count`, its cursor) for the stretch first to first + count."""
        if self.mixer is None:
            return [(self.sources[0], self.numbers[0], np.arange(count), first)]
        block = self.mixer.block
        low, high = first // block, -(-(first + count) // block)
        dealt = np.concatenate([self.mixer.deal(number) for number in range(low, high)])
        skipped = np.bincount(dealt[: first - low * block], minlength=len(self.sources))
        mine = dealt[first - low * block :][:count]
        cursors = self.mixer.before(low) + skipped
        return [
            (source, number, np.flatnonzero(mine == place), int(cursors[place]))
            for place, (source, number) in enumerate(zip(self.sources, self.numbers, strict=True))
            if (mine == place).any()
        ]

    def _cut(self, source: Source, whole: Slice) -> list[Slice]:
        """What the policy makes of a document that is larger than a row."""
        if self.budget.over == "drop" or source.layout.kind == "preference" or whole.stop <= 1:
            return []
        pieces, parts, at = source.layout.pieces(whole.sample), [], 0
        while at < whole.stop:
            stop, images = cut(pieces, first=at, positions=self.budget.positions, tiles=self.budget.images)
            if stop - at <= 1:
                break
            parts.append(Slice(whole.source, whole.sample, whole.epoch, at, stop, images))
            at = stop
            if self.budget.over == "truncate":
                break
        return parts

    def _choose_window(self) -> int:
        """So many samples that a window has about `window_rows` rows, but at most one epoch of all sources."""
        weights = self.mixer.counts(0, 64).mean(axis=0) / self.mixer.block if self.mixer else np.ones(1)
        share = np.zeros(2)
        for weight, source in zip(weights, self.sources, strict=True):
            step = max(1, source.num_samples // _SAMPLED)
            positions, images = source.layout.sizes(np.arange(0, source.num_samples, step)[:_SAMPLED])
            share += weight * np.array([np.minimum(positions, self.budget.positions).mean(), np.minimum(images, self.budget.images).mean()])
        rows_per_sample = max(share[0] / self.budget.positions, share[1] / max(1, self.budget.images))
        wanted = int(self.budget.window_rows / max(rows_per_sample, 1e-9))
        return max(1, min(wanted, sum(source.num_samples for source in self.sources)))
