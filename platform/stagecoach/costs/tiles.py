"""How one image becomes tiles, by its size alone: the grid is chosen before anything is decoded.

`dynamic` is MM1.5's rule (Eq. 1, recipes.md 2.2), `grids` is xGen-MM's (LLaVA's rule, recipes.md 3.2). Integers only, so that no
rounding decides, and `plan` counts tokens with the very code that splits images.
"""

from collections.abc import Sequence
from functools import lru_cache

from stagecoach.contract.plan import Model, Split

Grid = tuple[int, int]  # rows, columns
TYPICAL = (640, 480)  # width, height of the photo that stands for a corpus whose sizes are not known


def grids(split: Split) -> list[Grid]:
    """Every grid the split may choose, fewest tiles first. (4, 9) gives 18, (4, 16) gives 45."""
    return list(_grids(split))


@lru_cache(maxsize=32)
def _grids(split: Split) -> tuple[Grid, ...]:
    """Remembered: a plan asks a hundred times, and 10,000 tiles have 93,000 grids."""
    if split.kind == "none":
        return ((1, 1),)
    if split.kind == "static":
        return ((split.rows, split.columns),)
    side = split.max_side or split.max_tiles
    found = [
        (rows, columns)
        for rows in range(1, min(side, split.max_tiles) + 1)
        for columns in range(1, min(side, split.max_tiles // rows) + 1)
        if split.min_tiles <= rows * columns
    ]
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid)))


@lru_cache(maxsize=4096)
def choose_grid(split: Split, tile: int, width: int, height: int) -> Grid:
    """The grid for an image of that size in pixels, with tiles of `tile` pixels a side. Ties go to the fewest tiles."""
    choices = _grids(split) or ((1, 1),)  # a split without any grid is refused by the plan's checks
    if split.kind == "dynamic":
        return _least_padding(choices, tile, width, height)
    if split.kind == "grids":
        return _most_resolution(choices, tile, width, height)
    return choices[0]


def _least_padding(choices: Sequence[Grid], tile: int, width: int, height: int) -> Grid:
    """MM1.5: the longer side is scaled to the grid. Of grids that lose no pixel the least padded; else the one that loses least.

    Exact: along the longer side `long` (of `count` tiles) the scale is count * tile / long, so that every comparison below is one of
    integers, multiplied through by `long`.
    """
    long, short = max(width, height), min(width, height)
    whole: list[tuple[int, int, Grid]] = []
    shrunk: list[tuple[int, int, Grid]] = []
    for rows, columns in choices:
        along, across = (columns, rows) if width >= height else (rows, columns)
        if along * short > across * long:
            continue  # the shorter side would not be covered
        if along * tile >= long:
            whole.append((rows * columns * long - along**2 * short, rows * columns, (rows, columns)))
        else:
            shrunk.append((-along, rows * columns, (rows, columns)))
    if not whole and not shrunk:  # an aspect ratio beyond every grid: the longest one along the longer side
        return max(choices, key=lambda grid: (grid[1] if width >= height else grid[0], -grid[0] * grid[1]))
    return min(whole or shrunk)[2]


def _most_resolution(choices: Sequence[Grid], tile: int, width: int, height: int) -> Grid:
    """LLaVA: the most effective pixels after fitting the image inside (sides cut to whole pixels), then the least waste."""

    def rank(grid: Grid) -> tuple[int, int]:
        inner_width, inner_height = fit_inside(grid[1] * tile, grid[0] * tile, width, height)
        effective = min(inner_width * inner_height, width * height)
        return -effective, grid[0] * grid[1] * tile**2 - effective

    return min(choices, key=rank)


def fit_inside(box_width: int, box_height: int, width: int, height: int) -> tuple[int, int]:
    """The largest (width, height) of the image's shape in the box, cut to whole pixels, at least 1."""
    if box_width * height <= box_height * width:
        return box_width, max(1, box_width * height // width)
    return max(1, box_height * width // height), box_height


def tile_count(split: Split, grid: Grid) -> int:
    """Encoded images of one image: its tiles and the overview, which a 1 x 1 grid goes without."""
    tiles = grid[0] * grid[1]
    return tiles + (split.overview != "none" and tiles > 1)


def most_tiles(split: Split) -> int:
    """Encoded images of one image at most."""
    choices = _grids(split)
    return tile_count(split, choices[-1]) if choices else 1


def typical_tiles(model: Model) -> int:
    """Encoded images of a 640 x 480 photo."""
    return tile_count(model.image.split, choose_grid(model.image.split, model.image.size, *TYPICAL))
