"""Boxes on images, for people to look at."""

import math
from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

COLOURS = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230), (255, 225, 25))


def draw_boxes(image_HWC: np.ndarray, boxes: Sequence[Box], labels: Sequence[str] = ()) -> np.ndarray:
    """A copy of the image (uint8, three channels) with boxes and their labels on it.

    A predicted box may be anything: corners in the wrong order are put right, what lies outside is cut, a box without an area in the
    image or with a number that is none is left out. Labels beyond ASCII are shown with question marks.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(np.ascontiguousarray(image_HWC))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    width = max(1, round(min(picture.size) / 150))
    for number, box in enumerate(boxes):
        inside = clip_box(box, picture.width, picture.height)
        if inside is None:
            continue
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle(inside, outline=colour, width=width)
        if number < len(labels) and labels[number]:
            label = labels[number][:80].encode("ascii", "replace").decode()
            left, top = inside[0] + width, max(0.0, inside[1] - 12)
            draw.rectangle(draw.textbbox((left, top), label, font=font), fill=colour)
            draw.text((left, top), label, fill=(255, 255, 255), font=font)
    return np.asarray(picture)


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """The box's part inside the image, corners in order; None when there is none."""
    if not all(math.isfinite(side) for side in box):
        return None
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width - 1.0), min(bottom, height - 1.0)
    return (left, top, right, bottom) if right > left and bottom > top else None
