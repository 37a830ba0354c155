"""How one image becomes tiles, by its size alone: the grid is chosen before anything is decoded.

`dynamic` is MM1.5's rule (Eq. 1, recipes.md 2.2), `grids` is xGen-MM's (LLaVA's rule, recipes.md 3.2). Pure integers and floats, so
that `plan` counts tokens with the very code that splits images.
"""

from stagecoach.contract.plan import Model, Split

Grid = tuple[int, int]  # rows, columns
TYPICAL = (640, 480)  # width, height of the photo that stands for a corpus whose sizes are not known


def grids(split: Split) -> list[Grid]:
    """Every grid the split may choose, fewest tiles first. (4, 9) gives 18, (4, 16) gives 45."""
    if split.kind == "none":
        return [(1, 1)]
    if split.kind == "static":
        return [(split.rows, split.columns)]
    side = split.max_side or split.max_tiles
    found = [
        (rows, columns)
        for rows in range(1, min(side, split.max_tiles) + 1)
        for columns in range(1, min(side, split.max_tiles // rows) + 1)
        if split.min_tiles <= rows * columns
    ]
    return sorted(found, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grid(split: Split, tile: int, width: int, height: int) -> Grid:
    """The grid for an image of that size in pixels, with tiles of `tile` pixels a side. Ties go to the fewest tiles."""
    if split.kind == "dynamic":
        return _least_padding(grids(split), tile, width, height)
    if split.kind == "grids":
        return _most_resolution(grids(split), tile, width, height)
    return grids(split)[0]


def _least_padding(choices: list[Grid], tile: int, width: int, height: int) -> Grid:
    """MM1.5: the longer side is scaled to the grid. Of grids that lose no pixel the least padded; else the one that loses least."""
    whole: list[tuple[float, int, Grid]] = []
    shrunk: list[tuple[float, int, Grid]] = []
    for rows, columns in choices:
        scale = columns * tile / width if width >= height else rows * tile / height
        scaled_width, scaled_height = scale * width, scale * height
        if scaled_height > rows * tile or scaled_width > columns * tile:
            continue  # would not be covered
        if scale >= 1:
            whole.append((rows * columns * tile**2 - scaled_height * scaled_width, rows * columns, (rows, columns)))
        else:
            shrunk.append((-scale, rows * columns, (rows, columns)))
    if not whole and not shrunk:  # an aspect ratio beyond every grid: the longest one along the longer side
        return max(choices, key=lambda grid: (grid[1] if width >= height else grid[0], -grid[0] * grid[1]))
    return min(whole or shrunk)[2]


def _most_resolution(choices: list[Grid], tile: int, width: int, height: int) -> Grid:
    """LLaVA: the most effective pixels after fitting the image inside, then the least waste."""

    def rank(grid: Grid) -> tuple[float, float, int]:
        rows, columns = grid
        scale = min(columns * tile / width, rows * tile / height)
        effective = min(width * scale * height * scale, width * height)
        return -effective, rows * columns * tile**2 - effective, rows * columns

    return min(choices, key=rank)


def tile_count(split: Split, grid: Grid) -> int:
    """Encoded images of one image: its tiles and the overview, which a 1 x 1 grid goes without."""
    tiles = grid[0] * grid[1]
    return tiles + (split.overview != "none" and tiles > 1)


def most_tiles(split: Split) -> int:
    """Encoded images of one image at most."""
    return max(tile_count(split, grid) for grid in grids(split))


def typical_tiles(model: Model) -> int:
    """Encoded images of a 640 x 480 photo."""
    return tile_count(model.image.split, choose_grid(model.image.split, model.image.size, *TYPICAL))
