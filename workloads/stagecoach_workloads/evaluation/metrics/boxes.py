"""Boxes and points as text, and whether they hit."""

import re
from collections.abc import Sequence

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(r"[\[<(]" + ",".join([_NUMBER] * 4) + r"[\]>)]")
_POINT = re.compile(r"[\[<(]" + ",".join([_NUMBER] * 2) + r"[\]>)]")
LEAST_OVERLAP = 0.5

Box = tuple[float, float, float, float]


def read_box(text: str) -> Box | None:
    """The first `[x1, y1, x2, y2]` (or `<...>`, `(...)`) in a text; None when there is none."""
    found = _BOX.search(text)
    return (float(found[1]), float(found[2]), float(found[3]), float(found[4])) if found else None


def read_point(text: str) -> tuple[float, float] | None:
    """The first `[x, y]`; of a box its middle, as Ferret counts clicks."""
    found = _POINT.search(text)
    if found:
        return float(found[1]), float(found[2])
    box = read_box(text)
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) if box else None


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2). A box without an area, or with corners in the wrong order, meets nothing."""
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)]
    if not all(areas):
        return 0.0
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, across) * max(0.0, down)
    return shared / (areas[0] + areas[1] - shared)


def box_hits(answer: str, value: Sequence[float]) -> float:
    """1 when the answer's box has an IoU above 0.5 with the right one (RefCOCO's accuracy; recipes.md 2.4)."""
    box = read_box(answer)
    return float(box is not None and iou(box, value) > LEAST_OVERLAP)


def point_hits(answer: str, value: Sequence[float]) -> float:
    """1 when the answer's point lies in the box."""
    point = read_point(answer)
    return float(point is not None and value[0] <= point[0] <= value[2] and value[1] <= point[1] <= value[3])
