"""How many positions and encoded images a sample takes, from the index alone: text runs, image sizes, the split, the frames.

A sample's layout is a sequence of pieces: text run, image, text run, ... An image is `tiles` encoded images, each `tokens` positions with
its indicator's text in front. A preference pair is two such documents behind one another, each with all images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from stagecoach.contract.plan import Image
from stagecoach_workloads.data.index import IndexColumns
from stagecoach_workloads.data.tokens import RunLengths
from stagecoach_workloads.models.splitting import Tiling, plan_tiles


@dataclass(frozen=True)
class LayoutSettings:
    """What of the stage plan decides sizes. `indicator_length`: token count of a tile's indicator text."""

    image: Image
    tokens_per_tile: int
    frames: int = 0
    indicator_length: Callable[[str], int] = len


class Piece(NamedTuple):
    """A text run (`run` its number) or one image with all of its tiles. `start` is its first position in the sample."""

    start: int
    length: int
    run: int = -1
    image: int = -1  # its number in the sample
    tiling: Tiling | None = None

    @property
    def tiles(self) -> int:
        """Encoded images."""
        return len(self.tiling.tiles) if self.tiling else 0


class Layout:
    """Sizes of one source's samples."""

    def __init__(self, index: IndexColumns, lengths: RunLengths, settings: LayoutSettings, *, kind: str) -> None:
        self.index, self.lengths, self.settings, self.kind = index, lengths, settings, kind
        self.repeats = 2 if kind == "preference" else 1

    @property
    def identity(self) -> str:
        """Changes with whatever decides sizes: split, tokens a tile, frames, and the tokenizer and template by their text lengths."""
        settings = self.settings
        return f"{self.kind} {settings.image} {settings.tokens_per_tile} {settings.frames} {len(self.lengths.runs)} {self._text_tokens}"

    @cached_property
    def _text_tokens(self) -> int:
        return int(self.lengths.runs[:1_000_000].sum())

    def sizes(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions, encoded images) per sample, vectorised."""
        text = _sums(self.lengths.start, self.lengths.runs, samples)
        first = self.index.image_start[samples]
        counts = self.index.image_start[samples + 1] - first  # of these alone: the whole column is 800 MB at a hundred million rows
        if self.kind == "video" and self.settings.frames:
            shown = np.minimum(counts, self.settings.frames)
            return text + shown * self.settings.tokens_per_tile, shown
        return self._with_images(text, first, counts)

    def _with_images(self, text: np.ndarray, first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        owner = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        flat = np.repeat(first, counts) + within
        keys = (
            self.index.widths[flat].astype(np.int64) << 42
            | self.index.heights[flat].astype(np.int64) << 20
            | np.minimum(within, 1023) << 8
            | np.minimum(counts[owner], 255)
        )
        unique, back = np.unique(keys, return_inverse=True)
        found = np.array([self._image_size(int(key)) for key in unique], dtype=np.int64).reshape(-1, 2)
        positions = np.bincount(owner, weights=found[back, 0] if len(unique) else None, minlength=len(counts)).astype(np.int64)
        tiles = np.bincount(owner, weights=found[back, 1] if len(unique) else None, minlength=len(counts)).astype(np.int64)
        return text + positions * self.repeats, tiles * self.repeats

    def _image_size(self, key: int) -> tuple[int, int]:
        tiling, positions = self._tiling(key >> 42, (key >> 20) & 0x3FFFFF, (key >> 8) & 0xFFF, key & 0xFF)
        return positions, len(tiling.tiles)

    @cached_property
    def _tiling(self) -> Callable[[int, int, int, int], tuple[Tiling, int]]:
        return lru_cache(maxsize=262_144)(self._find_tiling)

    def _find_tiling(self, width: int, height: int, number: int, images: int) -> tuple[Tiling, int]:
        """How the sample's image `number` of `images` is encoded, and in how many positions. Frames of a video are never split."""
        images = max(images, self.settings.image.split.below_images) if self.kind == "video" else images
        tiling = plan_tiles(self.settings.image, width, height, images_in_sample=images, image_index=number)
        return tiling, sum(self.settings.tokens_per_tile + self.settings.indicator_length(tile.indicator) for tile in tiling.tiles)

    def shown_images(self, sample: int) -> list[int]:
        """Images in the order shown: all, or the uniformly sampled frames of a video."""
        count = int(self.index.image_start[sample + 1] - self.index.image_start[sample])
        frames = self.settings.frames
        if self.kind != "video" or not frames or count <= frames:
            return list(range(count))
        return [(2 * place + 1) * count // (2 * frames) for place in range(frames)]  # the middle of each of `frames` equal stretches

    def pieces(self, sample: int) -> list[Piece]:
        """The whole layout of one sample. Runs of a video's dropped frames join the run before them."""
        runs = self.lengths.runs[self.lengths.start[sample] : self.lengths.start[sample + 1]].tolist()
        first = int(self.index.image_start[sample])
        count = int(self.index.image_start[sample + 1]) - first
        shown, found, at = set(self.shown_images(sample)), [], 0
        for number, length in enumerate(runs):
            found.append(Piece(at, length, run=number))
            at += length
            image = number % (count + 1)
            if image < count and image in shown:
                width, height = int(self.index.widths[first + image]), int(self.index.heights[first + image])
                tiling, length = self._tiling(width, height, image, count)
                found.append(Piece(at, length, image=image, tiling=tiling))
                at += length
        return found


def _sums(start: np.ndarray, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sum of values[start[i]:start[i+1]] for each number i."""
    counts = start[numbers + 1] - start[numbers]
    owner = np.repeat(np.arange(len(numbers)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.bincount(owner, weights=values[np.repeat(start[numbers], counts) + within], minlength=len(numbers)).astype(np.int64)


def cut(pieces: list[Piece], *, first: int, positions: int, tiles: int) -> tuple[int, int]:
    """(stop, encoded images) of the longest slice from position `first` within both budgets. Text may be cut anywhere, an image never.

    Stop equals `first` when not even the next image fits.
    """
    used, at = 0, first
    for piece in pieces:
        end = piece.start + piece.length
        if end <= first:
            continue
        if piece.run >= 0:
            at = min(end, first + positions)
            if at < end:
                break
        else:
            if end - first > positions or used + piece.tiles > tiles:
                break
            at, used = end, used + piece.tiles
    return at, used
