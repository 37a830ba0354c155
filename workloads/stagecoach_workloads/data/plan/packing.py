"""Best-fit packing of a window of documents into rows, under two budgets: positions and encoded images.

Largest first (by the budget it strains most), each into the open row that it leaves fullest. Rows are kept sorted by free positions, one
list per number of free images, so a document looks at few rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(positions: Sequence[int], images: Sequence[int], *, max_positions: int, max_images: int) -> list[list[int]]:
    """Document numbers by row. Every document fits a row by itself. Deterministic."""
    order = _largest_first(positions, images, max_positions, max_images)
    free: list[list[tuple[int, int]]] = [[] for _ in range(max_images + 1)]  # by free images: sorted (free positions, row)
    rows: list[list[int]] = []
    weight = max_positions / max(1, max_images)
    for document in order:
        need, pictures = positions[document], images[document]
        best, best_cost, best_at = -1, float("inf"), -1
        for left in range(pictures, max_images + 1):
            lane = free[left]
            if not lane or lane[-1][0] < need:
                continue
            at = bisect_left(lane, (need, -1))
            cost = (lane[at][0] - need) + weight * (left - pictures)
            if cost < best_cost:
                best, best_cost, best_at = left, cost, at
        if best < 0:
            rows.append([document])
            insort(free[max_images - pictures], (max_positions - need, len(rows) - 1))
            continue
        left_positions, row = free[best].pop(best_at)
        rows[row].append(document)
        if left_positions > need:
            insort(free[best - pictures], (left_positions - need, row))
    return rows


def _largest_first(positions: Sequence[int], images: Sequence[int], max_positions: int, max_images: int) -> list[int]:
    """By the larger share of a budget, exactly, ties by number."""
    strain = np.maximum(np.asarray(positions, np.int64) * max(1, max_images), np.asarray(images, np.int64) * max_positions)
    found: list[int] = np.argsort(-strain, kind="stable").tolist()
    return found


def fewest_rows(positions: Sequence[int], images: Sequence[int], *, max_positions: int, max_images: int) -> int:
    """No packing needs fewer rows than this."""
    by_positions = -(-int(sum(positions)) // max_positions)
    by_images = -(-int(sum(images)) // max_images) if max_images else 0
    return max(by_positions, by_images, 1)
