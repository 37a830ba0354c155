"""Documents to one batch. B rows, T positions, N encoded images, S a tile's side (interfaces.md section 5)."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stagecoach.errors import DataError
from stagecoach_workloads.data.dataset import ContentError
from stagecoach_workloads.data.plan.layout import Piece
from stagecoach_workloads.data.samples import Sample
from stagecoach_workloads.data.tokens import Rendered, TextTokenizer
from stagecoach_workloads.data.work.pixels import Picture, picture_of, write_tiles
from stagecoach_workloads.data.work.tasks import Document
from stagecoach_workloads.models.splitting import Tiling

IGNORE_INDEX = -100
PADDING_DOCUMENT = -1  # positions of no document, as models.attention has it
Empty = Callable[[tuple[int, ...], type], np.ndarray]  # as np.empty: where a batch's memory is from


@dataclass(frozen=True, slots=True)
class BadSample:
    """A line of the quarantine log: which sample became padding, and why."""

    step: int
    sample: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One microstep on one rank. Labels say what their own position must predict: the shift by one is made here, where documents end.

    `pixel_values` are uint8 NCHW, channels_last in memory. `image_slots`: row, first position, number of positions, in the order of the
    stacked images. `image_regions`: top, left, bottom, right of each image's pixels that are no padding. `pairs_P3`: row, document id of
    the chosen, of the rejected answer.
    """

    tokens_BT: Tensor
    labels_BT: Tensor
    document_ids_BT: Tensor
    positions_BT: Tensor
    pixel_values: list[Tensor]
    image_slots: Tensor
    image_regions: Tensor
    pairs_P3: Tensor
    num_targets: int
    num_images: int
    sample_ids: list[list[str]]
    bad: list[BadSample] = field(default_factory=list)
    num_samples: int = 0
    document_sources: list[list[int]] = field(default_factory=list)  # a row: number of the source of each document id


@dataclass(frozen=True, kw_only=True)
class CollateSettings:
    """What of the stage plan decides tensors."""

    seq_len: int
    template: str
    targets: Literal["text", "answers"]
    tile_size: int
    tokens_per_tile: int
    vocabulary: int


@dataclass(slots=True, eq=False)
class _Load:
    """One document under way: the pieces with images that its slice shows, and where their tiles go. `error` once it is known to be bad."""

    document: Document
    shown: list[Piece]
    places: range
    pictures: list[Picture] = field(default_factory=list)  # of `shown`
    rendered: list[Rendered] = field(default_factory=list)
    error: ContentError | None = None


class Collator:
    """Fills batches. One a process."""

    def __init__(
        self, settings: CollateSettings, tokenizer: TextTokenizer, names: Sequence[str], pool: Executor, *, threads: int = 2
    ) -> None:
        """`names` are the sources' names; `pool`, of that many threads, decodes images."""
        self.settings, self.tokenizer, self.names, self.pool, self.threads = settings, tokenizer, names, pool, threads

    def collate(
        self, step: int, rows: Sequence[Sequence[Document]], bodies: Sequence[bytes | ContentError], empty: Empty = np.empty
    ) -> Batch:
        """`bodies` are the stretches of all documents, row by row; memory is from `empty`.

        A document whose content is bad becomes padding of its planned size.

        Python's own work on all documents goes before the decoding of all images and after it, never between: an image goes through the
        whole of a core's cache, and after each one the same Python takes ten times as long.
        Raises DataError when the plan's sizes do not fit the text, which means that the token counts are another tokenizer's.
        """
        loads = self._loads(rows)
        tiles = loads[-1].places.stop if loads else 0
        pixels = empty((tiles, *[self.settings.tile_size] * 2, 3), np.uint8)  # NHWC
        for load, body in zip(loads, bodies, strict=True):
            self._parse(load, body)
        self._decode_all(loads, pixels)
        filling = _Filling(self.settings, self.tokenizer, len(rows), pixels, empty)
        waiting = iter(loads)
        for number, row in enumerate(rows):
            filling.begin_row()
            for document in row:
                load = next(waiting)
                label = f"{self.names[document.source]}/{document.stretch.key}"
                if load.error is not None:
                    filling.skip(number, document, label, BadSample(step, label, str(load.error)))
                else:
                    filling.add(number, load, label)
        return filling.batch()

    def _loads(self, rows: Sequence[Sequence[Document]]) -> list[_Load]:
        """All documents, row by row, each with its places among the batch's tiles."""
        found, first = [], 0
        for document in (document for row in rows for document in row):
            shown = [piece for piece in document.pieces if piece.tiling and document.start <= piece.start < document.stop]
            count = sum(piece.tiles for piece in shown)
            found.append(_Load(document, shown, range(first, first + count)))
            first += count
        return found

    def _parse(self, load: _Load, body: bytes | ContentError) -> None:
        """Its bytes checked, its tokens made, the headers of its images read."""
        if isinstance(body, ContentError):
            load.error = body
            return
        try:
            sample = load.document.stretch.parse(body, copy=False)
            load.pictures = [_picture(load.document, sample, piece) for piece in load.shown]
            load.rendered = self.tokenizer.documents(sample, self.settings.template)
        except ContentError as error:
            load.error = error

    def _decode_all(self, loads: Sequence[_Load], pixels: np.ndarray) -> None:
        """The tiles of all images. Each thread takes the next document that waits, so that none is idle while any does."""
        waiting = deque(load for load in loads if load.shown and load.error is None)
        jobs = [self.pool.submit(_decode, waiting, pixels) for _ in range(min(self.threads, len(waiting)))]
        for job in jobs:
            job.result()


def _picture(document: Document, sample: Sample, piece: Piece) -> Picture:
    assert piece.tiling is not None
    try:
        return picture_of(sample.images[piece.image], piece.tiling)
    except ContentError as error:
        raise _of_image(document, piece, error) from None


def _of_image(document: Document, piece: Piece, error: ContentError) -> ContentError:
    return ContentError(f"{document.stretch.name}: image {piece.image}: {error}")


def _decode(waiting: deque[_Load], pixels: np.ndarray) -> None:
    """Takes documents and writes their tiles, until none waits."""
    while True:
        try:
            load = waiting.popleft()
        except IndexError:
            return
        at = load.places.start
        for piece, picture in zip(load.shown, load.pictures, strict=True):
            try:
                write_tiles(picture, pixels[at : at + piece.tiles])
            except ContentError as error:
                load.error = _of_image(load.document, piece, error)
                break
            at += piece.tiles


class _Filling:
    """A batch being filled, row by row, from the left."""

    def __init__(self, settings: CollateSettings, tokenizer: TextTokenizer, rows: int, pixels: np.ndarray, empty: Empty) -> None:
        self.settings, self.tokenizer, self.pixels = settings, tokenizer, pixels
        shape = (rows, settings.seq_len)
        self.tokens, self.labels, self.documents, self.positions = (empty(shape, np.int64) for _ in range(4))
        self.tokens[:], self.labels[:], self.documents[:], self.positions[:] = tokenizer.pad_id, IGNORE_INDEX, PADDING_DOCUMENT, 0
        self.targets = np.zeros(shape, bool)  # tokens that the loss sees
        self.kept: list[int] = []  # places of good tiles in `pixels`
        self.slots: list[tuple[int, int, int]] = []
        self.regions: list[tuple[int, int, int, int]] = []
        self.pairs: list[tuple[int, int, int]] = []
        self.sample_ids: list[list[str]] = []
        self.document_sources: list[list[int]] = []
        self.bad: list[BadSample] = []
        self.samples = 0
        self._at = self._document = 0

    def begin_row(self) -> None:
        self._at = self._document = 0
        self.sample_ids.append([])
        self.document_sources.append([])

    def skip(self, row: int, document: Document, label: str, bad: BadSample) -> None:
        """Leaves padding of the planned size."""
        self._at += document.stop - document.start
        self.sample_ids[row].append(label)
        self.bad.append(bad)
        self.samples += 1

    def add(self, row: int, load: _Load, label: str) -> None:
        """Puts a slice's tokens, labels and images in place."""
        document = load.document
        ids, targets, starts = self._sequence(document, load.rendered, label)
        first, size = document.start, document.stop - document.start
        span = slice(self._at, self._at + size)
        self.tokens[row, span], self.targets[row, span] = ids[first : document.stop], targets[first : document.stop]
        count = self._number_documents(row, [start - first for start in starts if 0 < start - first < size], size)
        if len(starts) == count == 2:
            self.pairs.append((row, self._document - 2, self._document - 1))
        self.document_sources[-1] += [document.source] * count
        self._place_images(row, load)
        self.kept.extend(load.places)
        self.sample_ids[row].append(label)
        self.samples += 1
        self._at += size

    def _sequence(self, document: Document, rendered: list[Rendered], label: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Ids and target flags of the sample's whole layout, and where its documents (two of a preference pair) start."""
        size = document.pieces[-1].start + document.pieces[-1].length
        ids, targets = np.full(size, self.tokenizer.image_id, np.int64), np.zeros(size, bool)
        runs = [run for part in rendered for run in part.runs]
        flags = [flag for part in rendered for flag in part.answers]
        firsts = {sum(len(part.runs) for part in rendered[:number]) for number in range(len(rendered))}
        starts = []
        for piece in document.pieces:
            if piece.tiling is not None:
                self._write_indicators(ids, piece.start, piece.tiling)
                continue
            run = runs[piece.run] if piece.run < len(runs) else []
            if len(run) != piece.length:
                raise DataError(
                    f"{label}: text run {piece.run} has {len(run)} tokens and the plan counted {piece.length}: the counts are of another "
                    "tokenizer or template; run `stagecoach data index` again"
                )
            if piece.run in firsts:
                starts.append(piece.start)
            ids[piece.start : piece.start + piece.length] = run
            targets[piece.start : piece.start + piece.length] = True if self.settings.targets == "text" else flags[piece.run]
        if ids.max(initial=0) >= self.settings.vocabulary:
            raise DataError(f"{label}: token id {ids.max()} with a vocabulary of {self.settings.vocabulary} (model.decoder)")
        return ids, targets, starts

    def _write_indicators(self, ids: np.ndarray, at: int, tiling: Tiling) -> None:
        for tile in tiling.tiles:
            if tile.indicator:
                text = self.tokenizer.encode(tile.indicator)
                ids[at : at + len(text)] = text
                at += len(text)
            at += self.settings.tokens_per_tile

    def _number_documents(self, row: int, inside: list[int], size: int) -> int:
        """Document ids and positions of a slice of `size`, `inside` which further documents start. Returns how many there are."""
        edges = [0, *inside, size]
        for begin, end in pairwise(edges):
            self.documents[row, self._at + begin : self._at + end] = self._document
            self.positions[row, self._at + begin : self._at + end] = np.arange(end - begin)
            self._document += 1
        return len(edges) - 1

    def _place_images(self, row: int, load: _Load) -> None:
        offset = self._at - load.document.start
        for piece in load.shown:
            assert piece.tiling is not None
            at = offset + piece.start
            for tile in piece.tiling.tiles:
                at += len(self.tokenizer.encode(tile.indicator)) if tile.indicator else 0
                left, top, right, bottom = tile.region
                self.slots.append((row, at, self.settings.tokens_per_tile))
                self.regions.append((top, left, bottom, right))
                at += self.settings.tokens_per_tile

    def _write_labels(self) -> int:
        """A position predicts the next one of its own document, if that is a target. Returns how many do."""
        predicts = self.targets[:, 1:] & (self.documents[:, 1:] == self.documents[:, :-1])
        np.copyto(self.labels[:, :-1], self.tokens[:, 1:], where=predicts)
        return int(predicts.sum())

    def batch(self) -> Batch:
        pixels = self.pixels if len(self.kept) == len(self.pixels) else self.pixels[self.kept]
        num_targets = self._write_labels()
        return Batch(
            tokens_BT=torch.from_numpy(self.tokens),
            labels_BT=torch.from_numpy(self.labels),
            document_ids_BT=torch.from_numpy(self.documents),
            positions_BT=torch.from_numpy(self.positions),
            pixel_values=[torch.from_numpy(pixels).permute(0, 3, 1, 2)] if len(pixels) else [],  # NCHW, channels_last in memory
            image_slots=torch.from_numpy(np.array(self.slots, np.int64).reshape(-1, 3)),
            image_regions=torch.from_numpy(np.array(self.regions, np.int64).reshape(-1, 4)),
            pairs_P3=torch.from_numpy(np.array(self.pairs, np.int64).reshape(-1, 3)),
            num_targets=num_targets,
            num_images=len(pixels),
            sample_ids=self.sample_ids,
            bad=self.bad,
            num_samples=self.samples,
            document_sources=self.document_sources,
        )
