"""Drawing: shapes on a grid, words, bars, tables, screens. Everything that varies comes from the brush's own random stream."""

import io
import math
import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from stagecoach_workloads.data.made.level import Level, shade_classes

COLOURS = {
    "red": (215, 40, 40), "blue": (45, 85, 220), "green": (35, 160, 70), "yellow": (235, 205, 40),
    "purple": (140, 60, 180), "orange": (240, 135, 30), "black": (35, 35, 35), "pink": (240, 130, 175),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring")
SIDES = {"square": 4, "triangle": 3, "circle": 0, "star": 10, "cross": 12, "diamond": 4}
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


@dataclass
class Picture:
    """An image being drawn, and the boxes of what is on it."""

    image: Image.Image
    boxes: list[tuple[str, Box]] = field(default_factory=list)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def encoded(self, *, quality: int | None) -> bytes:
        """JPEG at that quality, or PNG for None."""
        held = io.BytesIO()
        if quality is None:
            self.image.save(held, "PNG")
        else:
            self.image.save(held, "JPEG", quality=quality)
        return held.getvalue()


class Brush:
    """Draws one sample: knows the level, the split's shades, and a random stream of its own."""

    def __init__(self, level: Level, split: str, rng: random.Random) -> None:
        self.level, self.split, self.rng = level, split, rng
        self.colours = list(COLOURS)[: level.colours]
        self.shapes = list(SHAPES[: level.shapes])

    def shade(self, name: str) -> tuple[int, int, int]:
        """One of the split's shades of a colour."""
        number = self.rng.choice(shade_classes(self.split))
        turn = random.Random(f"{name}-{number}")
        red, green, blue = (max(0, min(255, part + turn.randint(-18, 18))) for part in COLOURS[name])
        return red, green, blue

    def blank(self, width: int | None = None, height: int | None = None) -> Picture:
        """A light canvas; the split decides its tint."""
        tint = random.Random(f"ground-{self.rng.choice(shade_classes(self.split))}")
        ground = (tint.randint(228, 255), tint.randint(228, 255), tint.randint(228, 255))
        return Picture(Image.new("RGB", (width or self.level.size, height or self.level.size), ground))

    def cell(self, picture: Picture, place: int, grid: int | None = None, fill: float = 0.8) -> Box:
        """The box inside cell `place` (row-major) of the grid. Boxes of different cells never overlap."""
        grid = grid or self.level.grid
        width, height = picture.image.size
        row, column = divmod(place, grid)
        left, top = column * width / grid, row * height / grid
        side = fill * min(width, height) / grid
        x, y = left + (width / grid - side) / 2, top + (height / grid - side) / 2
        return round(x), round(y), round(x + side), round(y + side)

    def shape(self, picture: Picture, shape: str, colour: str, box: Box) -> None:
        """Draws a filled shape into the box and notes it."""
        draw_shape(picture.pen, shape, box, self.shade(colour))
        picture.boxes.append((f"{colour} {shape}", box))

    def scene(self, things: list[tuple[str, str]], *, grid: int | None = None, places: list[int] | None = None) -> Picture:
        """(colour, shape) things on cells of the grid, the given ones or random ones."""
        picture = self.blank()
        grid = grid or self.level.grid
        while grid * grid < len(things):
            grid += 1
        places = places if places is not None else self.rng.sample(range(grid * grid), len(things))
        for (colour, shape), place in zip(things, places, strict=True):
            self.shape(picture, shape, colour, self.cell(picture, place, grid))
        return picture

    def other(self, options: list[str], *but: str) -> str:
        """One of the options that is none of `but`."""
        return self.rng.choice([option for option in options if option not in but])

    def words(self, picture: Picture, text: str, box: Box, *, ink: tuple[int, int, int] = (20, 20, 20)) -> None:
        """Writes one line as large as the box allows, centred."""
        font = fitting_font(text, box[2] - box[0], box[3] - box[1])
        picture.pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, font=font, fill=ink, anchor="mm")


@cache
def font_of(size: int) -> Any:
    """Pillow's own typeface (Aileron), so that a corpus does not depend on what a machine has installed."""
    return ImageFont.load_default(size)


def fitting_font(text: str, width: int, height: int) -> Any:
    """The largest size at which the line fits."""
    size = max(6, height)
    while size > 6 and (font_of(size).getlength(text) > width or size * 1.05 > height):
        size -= 1 if size < 24 else size // 12
    return font_of(size)


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, box: Box, colour: tuple[int, int, int]) -> None:
    """One filled shape inside the box. Raises KeyError for a name that is not in SHAPES."""
    x1, y1, x2, y2 = box
    middle, centre, radius = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=max(2, (x2 - x1) // 5))
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "cross":
        third = (x2 - x1) / 3
        pen.rectangle((x1 + third, y1, x2 - third, y2), fill=colour)
        pen.rectangle((x1, y1 + third, x2, y2 - third), fill=colour)
    else:
        outlines: dict[str, list[tuple[float, float]]] = {
            "triangle": [(middle, y1), (x2, y2), (x1, y2)],
            "diamond": [(middle, y1), (x2, centre), (middle, y2), (x1, centre)],
            "star": [_star_point(middle, centre, radius, point) for point in range(10)],
        }
        pen.polygon(outlines[shape], fill=colour)


def _star_point(x: float, y: float, radius: float, point: int) -> tuple[float, float]:
    length = radius if point % 2 == 0 else radius * 0.45
    angle = math.pi * point / 5 - math.pi / 2
    return x + length * math.cos(angle), y + length * math.sin(angle)


def on_canvas(box: Box, size: tuple[int, int]) -> list[int]:
    """A box in integers of a 1000 x 1000 canvas of the whole image (Ferret's convention, recipes.md 2.4)."""
    width, height = size
    return [round(1000 * box[0] / width), round(1000 * box[1] / height), round(1000 * box[2] / width), round(1000 * box[3] / height)]


def box_text(box: list[int]) -> str:
    return "[" + ", ".join(map(str, box)) + "]"
