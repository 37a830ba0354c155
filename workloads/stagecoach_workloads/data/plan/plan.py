"""`DataPlan`: the global batch of any step, as a pure function of seed, fingerprints, mixture and state (interfaces.md section 5)."""

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stagecoach.contract.plan import Batch, Mixture, Packing
from stagecoach.errors import DataError
from stagecoach_workloads.data.plan.assign import assign
from stagecoach_workloads.data.plan.keys import key_of, permutation
from stagecoach_workloads.data.plan.mixing import Mixer
from stagecoach_workloads.data.plan.source import Source
from stagecoach_workloads.data.plan.streams import Budget, Row, Stream

STATE_FORMAT = "stagecoach.data_state/1"
_MIX_BLOCK = 256  # samples


def _digest_of(sources: Sequence[Source], weights: Sequence[float], unit: str, budget: Budget, batch: Batch, seed: int) -> str:
    """Two plans with the same digest have the same batches."""
    told = [[(s.name, s.identity, weight) for s, weight in zip(sources, weights, strict=True)], unit, budget, batch.unit, batch.size, seed]
    return hashlib.sha256(repr(told).encode()).hexdigest()


class DataPlan:
    """Knows no ranks and no workers, reads no sample. Not thread-safe."""

    def __init__(
        self, sources: Sequence[Source], *, mixture: Mixture, packing: Packing, batch: Batch, seed: int, microbatch_rows: int = 1
    ) -> None:
        """`sources` are those of the mixture, in its order. Raises DataError when a source is missing."""
        by_name = {source.name: source for source in sources}
        drawn = [weight for weight in mixture.weights if weight.weight > 0]
        missing = [weight.dataset for weight in drawn if weight.dataset not in by_name]
        if missing:
            raise DataError(
                f"data.mixture names `{missing[0]}` and no dataset of that name is open; there are {', '.join(sorted(by_name))}"
            )
        self.sources = [by_name[weight.dataset] for weight in drawn]
        self.mixture, self.batch_settings, self.seed, self.microbatch_rows = mixture, batch, seed, microbatch_rows
        self._by_rows = mixture.unit == "rows" and batch.unit == "rows"
        budget = Budget(positions=batch.seq_len, images=packing.images_per_row, over=packing.over_budget, window_rows=packing.window_rows)
        weights = [weight.weight for weight in drawn]
        self.weights = [weight / sum(weights) for weight in weights]  # by source, of the mixture's unit
        self.digest = _digest_of(self.sources, weights, mixture.unit, budget, batch, seed)
        if self._by_rows:
            self._mixer = Mixer(weights, block=batch.size, seed=seed, label="rows")
            self._streams = [Stream(source.name, [source], [number], budget, seed) for number, source in enumerate(self.sources)]
        else:
            self._mixer = Mixer(weights, block=_MIX_BLOCK, seed=seed, label="samples")
            window = batch.size if batch.unit == "samples" else 0
            self._streams = [Stream("mixture", self.sources, range(len(self.sources)), budget, seed, mixer=self._mixer, window=window)]

    def batch(self, step: int) -> list[Row]:
        """The global batch of a step (from 0). With `batch.unit = samples` it is that many samples, in as many rows as they need."""
        if self.batch_settings.unit == "samples":
            return self._streams[0].packed(step)
        size = self.batch_settings.size
        if not self._by_rows:
            return self._streams[0].rows(step * size, size)
        counts, cursors = self._mixer.counts(step, step + 1)[0], self._mixer.before(step)
        rows = [
            row
            for stream, cursor, count in zip(self._streams, cursors, counts, strict=True)
            for row in stream.rows(int(cursor), int(count))
        ]
        return [rows[place] for place in permutation(key_of("step", self.seed, step), len(rows))]

    def assign(self, rows: Sequence[Row], ranks: int) -> list[list[list[int]]]:
        """rank -> microsteps -> numbers of rows, balanced (`assign.py`)."""
        return assign(rows, ranks, microbatch_rows=self.microbatch_rows)

    def state(self, step: int) -> dict[str, Any]:
        """All that is needed to go on before `step`: per stream the window its next row is in, and how many rows came before it."""
        return {"format": STATE_FORMAT, "step": step, "streams": {s.name: list(s.find(c)) for s, c in self._cursors(step)}}

    def go_to(self, state: dict[str, Any]) -> None:
        """Takes up a state, so that its step is reached at once. Raises DataError when the state is another plan's."""
        streams = state.get("streams") if state.get("format") == STATE_FORMAT else None
        if not isinstance(streams, dict) or (streams and set(streams) != {stream.name for stream in self._streams}):
            raise DataError(
                f"the data state is not of this plan: it has {sorted(streams) if isinstance(streams, dict) else state.get('format')} and "
                f"the plan's streams are {sorted(stream.name for stream in self._streams)}; a changed mixture is a new stage"
            )
        for stream in self._streams:
            if stream.name in streams:
                stream.go_to(*streams[stream.name])

    def _cursors(self, step: int) -> list[tuple[Stream, int]]:
        """Each stream's next row before `step`. None for steps of whole windows, which are found by their number."""
        if self.batch_settings.unit == "samples":
            return []
        if not self._by_rows:
            return [(self._streams[0], step * self.batch_settings.size)]
        return [(stream, int(cursor)) for stream, cursor in zip(self._streams, self._mixer.before(step), strict=True)]

    def forget(self) -> None:
        """Drops every window that is packed or known: what a fresh process would know. For measuring."""
        for stream in self._streams:
            stream.forget()

    @property
    def window_samples(self) -> int:
        """Samples that are packed together, of the first stream."""
        return self._streams[0].window

    @property
    def counts_rows(self) -> bool:
        """True when the mixture's weights count rows, False when they count samples."""
        return self._by_rows

    def marks(self) -> dict[str, list[tuple[int, int]]]:
        """(window, rows before it) of every window that is known, by stream: with them any step up to there is reached by packing one
        window a stream (`states.py` keeps them)."""
        return {stream.name: stream.marks() for stream in self._streams}

    def learn_marks(self, marks: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """The opposite of `marks`. Raises DataError for other streams than the plan's."""
        if set(marks) != {stream.name for stream in self._streams}:
            raise DataError(f"the table of data states has the streams {sorted(marks)}; it is not of this plan")
        for stream in self._streams:
            stream.learn(marks[stream.name])

    @property
    def dropped(self) -> int:
        """Documents dropped so far because they are larger than a row."""
        return sum(stream.dropped for stream in self._streams)

    def hash(self, rows: Sequence[Row]) -> str:
        """The batch's hash: which slices, in which order. Knows neither ranks nor workers."""
        digest = hashlib.sha256()
        for row in rows:
            digest.update(struct.pack("<q", len(row.slices)))
            for part in row.slices:
                digest.update(self.sources[part.source].name.encode())
                digest.update(struct.pack("<5q", part.sample, part.epoch, part.start, part.stop, part.images))
        return digest.hexdigest()[:32]

    def shares(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        """Achieved shares by source: of rows (by their first document), of samples, of positions, of images."""
        totals: dict[str, Counter[str]] = {key: Counter() for key in ("rows", "samples", "positions", "images")}
        for row in rows:
            for place, part in enumerate(row.slices):
                name = self.sources[part.source].name
                totals["rows"][name] += place == 0
                totals["samples"][name] += part.start == 0
                totals["positions"][name] += part.stop - part.start
                totals["images"][name] += part.images
        return {key: {n: round(c / max(1, found.total()), 4) for n, c in sorted(found.items())} for key, found in totals.items()}

    def describe(self, step: int, ranks: int) -> dict[str, Any]:
        """One step for `stagecoach data plan --json`."""
        rows = self.batch(step)
        dealt = self.assign(rows, ranks)
        load = [sum(rows[n].images for micro in mine for n in micro) for mine in dealt]
        filled = sum(row.positions for row in rows)
        return {
            "step": step,
            "batch_hash": self.hash(rows),
            "rows": len(rows),
            "fill": round(filled / max(1, len(rows) * self.batch_settings.seq_len), 4),
            "images": sum(load),
            "load_by_rank": load,
        }
