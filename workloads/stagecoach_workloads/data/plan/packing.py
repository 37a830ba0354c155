"""Best-fit packing of a window of documents into rows, under two budgets: positions and encoded images.

As many rows as no packing can do without are open from the start. Texts too long to stand beside a row's share of images come first,
then documents with images, then the other texts; within each, largest first. A document with images goes to a row with the fewest
images so far, so that rows end up with like image counts and ranks with like encoder loads; of those, and for text, to the row that it
leaves fullest. Rows are kept sorted by free positions, one list per number of free
images, so a document looks at few rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(positions: Sequence[int], images: Sequence[int], *, max_positions: int, max_images: int) -> list[list[int]]:
    """Document numbers by row. Every document fits a row by itself. Deterministic."""
    count = fewest_rows(positions, images, max_positions=max_positions, max_images=max_images)
    free: list[list[tuple[int, int]]] = [[] for _ in range(max_images + 1)]  # by free images: sorted (free positions, row)
    free[max_images] = [(max_positions, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for document in _order(positions, images, max_positions, max_images, count):
        need, pictures = positions[document], images[document]
        place = _emptiest(free, need, pictures) if pictures else _tightest(free, need)
        if place is None:
            rows.append([document])
            insort(free[max_images - pictures], (max_positions - need, len(rows) - 1))
            continue
        left, at = place
        left_positions, row = free[left].pop(at)
        rows[row].append(document)
        if left_positions > need:
            insort(free[left - pictures], (left_positions - need, row))
    return [row for row in rows if row]


def _emptiest(free: list[list[tuple[int, int]]], need: int, pictures: int) -> tuple[int, int] | None:
    """(free images, place) of the row with the most free images, then the fewest free positions, that takes the document."""
    for left in range(len(free) - 1, pictures - 1, -1):
        lane = free[left]
        if lane and lane[-1][0] >= need:
            return left, bisect_left(lane, (need, -1))
    return None


def _tightest(free: list[list[tuple[int, int]]], need: int) -> tuple[int, int] | None:
    """The same for a document without images: the fewest free positions, then the fewest free images."""
    best: tuple[int, int, int] | None = None
    for left, lane in enumerate(free):
        if lane and lane[-1][0] >= need:
            at = bisect_left(lane, (need, -1))
            if best is None or lane[at][0] < best[0]:
                best = lane[at][0], left, at
    return best[1:] if best else None


def _order(positions: Sequence[int], images: Sequence[int], max_positions: int, max_images: int, rows: int) -> list[int]:
    """Long texts, documents with images, short texts; each by the larger share of a budget, exactly, ties by number."""
    sizes, pictures = np.asarray(positions, np.int64), np.asarray(images, np.int64)
    strain = np.maximum(sizes * max(1, max_images), pictures * max_positions)
    beside = max_positions - int(sizes[pictures > 0].sum()) // rows  # what a row's share of images leaves for text
    group = np.where(pictures > 0, 1, np.where(sizes > beside, 0, 2))
    found: list[int] = np.lexsort((np.arange(len(sizes)), -strain, group)).tolist()
    return found


def fewest_rows(positions: Sequence[int], images: Sequence[int], *, max_positions: int, max_images: int) -> int:
    """No packing needs fewer rows than this."""
    by_positions = -(-int(sum(positions)) // max_positions)
    by_images = -(-int(sum(images)) // max_images) if max_images else 0
    return max(by_positions, by_images, 1)
