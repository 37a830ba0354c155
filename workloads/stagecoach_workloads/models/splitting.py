"""How one image becomes encoded images (tiles and an overview), and how its boxes find their way there and back. No torch here.

The grid is chosen by `stagecoach.costs.tiles`, in integers: MM1.5's dynamic rule (arXiv:2409.20566 Eq. 1), LLaVA's rule as xGen-MM
uses it (arXiv:2408.08872), or a static grid as SPHINX's sub-images in MM1 (arXiv:2403.09611). Three frames of reference: the original
image; the canvas (the grid's pixels, which the image is resized into and padded to); a tile, or the overview, of `image.size` a side.
A box is (left, top, right, bottom) in pixels, as exact fractions wherever it is moved. The classes have no slots: without
them they are pickled in a third of the time, and the data loader sends some with every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from stagecoach.contract.plan import Image
from stagecoach.costs.tiles import Grid, choose_grid
from stagecoach.errors import DataError

Box = tuple[Fraction, Fraction, Fraction, Fraction]
Pixels = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Where an image lies inside a rectangle: resized to `inner` (left, top, right, bottom), the rest is padding."""

    width: int
    height: int
    inner: Pixels

    def forward(self, box: Sequence[int | Fraction], image: tuple[int, int]) -> Box:
        """A box of the original image (width, height), in this rectangle's pixels."""
        left, top, right, bottom = self.inner
        across, down = Fraction(right - left, image[0]), Fraction(bottom - top, image[1])
        return (left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down)

    def back(self, box: Sequence[int | Fraction], image: tuple[int, int]) -> Box:
        """The same, backwards."""
        left, top, right, bottom = self.inner
        across, down = Fraction(image[0], right - left), Fraction(image[1], bottom - top)
        return ((box[0] - left) * across, (box[1] - top) * down, (box[2] - left) * across, (box[3] - top) * down)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One encoded image. `row` and `column` count from 1; (0, 0) is the overview. `region`: its pixels that are no padding."""

    row: int
    column: int
    region: Pixels
    indicator: str  # text in front of it, often empty

    @property
    def is_overview(self) -> bool:
        return self.row == 0


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """One image's encoded images, in the order in which they stand in the text."""

    width: int  # of the original
    height: int
    size: int  # pixels a side of a tile
    grid: Grid  # rows, columns
    canvas: Fit
    overview: Fit | None
    tiles: tuple[Tile, ...]

    def to_tiles(self, box: Sequence[int | Fraction]) -> list[tuple[Tile, Box]]:
        """The parts of a box of the original image, one for each tile that shows some of it, in the tile's own pixels.

        A box without area (a point, a line) lands in the first tile that holds it. Overviews show it whole and are left out here.
        """
        whole = self.canvas.forward(box, (self.width, self.height))
        flat_x, flat_y = whole[0] == whole[2], whole[1] == whole[3]
        found: list[tuple[Tile, Box]] = []
        for tile in self.tiles:
            across = _overlap(whole[0], whole[2], (tile.column - 1) * self.size, self.size)
            down = _overlap(whole[1], whole[3], (tile.row - 1) * self.size, self.size)
            if tile.is_overview or across is None or down is None:
                continue
            found.append((tile, (across[0], down[0], across[1], down[1])))
        return found[:1] if flat_x and flat_y else found

    def from_tile(self, tile: Tile, box: Sequence[int | Fraction]) -> Box:
        """A box in a tile's (or the overview's) pixels, in the original image's."""
        if tile.is_overview:
            assert self.overview is not None
            return self.overview.back(box, (self.width, self.height))
        x, y = (tile.column - 1) * self.size, (tile.row - 1) * self.size
        return self.canvas.back((box[0] + x, box[1] + y, box[2] + x, box[3] + y), (self.width, self.height))

    def from_tiles(self, parts: Sequence[tuple[Tile, Sequence[int | Fraction]]]) -> Box:
        """The smallest box of the original image around parts in several tiles; undoes `to_tiles`."""
        boxes = [self.from_tile(tile, part) for tile, part in parts]
        return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def plan_tiles(image: Image, width: int, height: int, *, images_in_sample: int = 1, image_index: int = 0) -> Tiling:
    """Decides how an image of width x height pixels is encoded, from its size alone. Raises DataError for an empty image.

    Only samples with fewer than `split.below_images` images are split. The overview of a 1 x 1 grid is left out: it would be the tile.
    Padding goes on both sides, half each: none of the papers but xGen-MM says where.
    """
    if width < 1 or height < 1:
        raise DataError(f"an image of {width}x{height} pixels cannot be encoded; drop the sample")
    split = image.split
    splits = split.kind != "none" and images_in_sample < split.below_images
    grid = choose_grid(split, image.size, width, height) if splits else (1, 1)
    canvas = fit_canvas(image, grid, width, height) if splits else fit_tile(image, width, height)
    wants_overview = splits and split.overview != "none" and grid != (1, 1)
    overview = fit_overview(image, width, height) if wants_overview else None
    tiles = [_tile(image, canvas, row, column, image_index, splits) for row in range(1, grid[0] + 1) for column in range(1, grid[1] + 1)]
    if overview is not None:
        whole = Tile(row=0, column=0, region=overview.inner, indicator=indicator(image, 0, 0, image_index))
        tiles = [whole, *tiles] if split.overview == "before" else [*tiles, whole]
    return Tiling(width=width, height=height, size=image.size, grid=grid, canvas=canvas, overview=overview, tiles=tuple(tiles))


def fit_tile(image: Image, width: int, height: int) -> Fit:
    """A whole image in one tile: squashed, or padded to a square."""
    return _fit(image.size, image.size, width, height, squash=image.fit == "squash")


def fit_canvas(image: Image, grid: Grid, width: int, height: int) -> Fit:
    """A whole image in the grid's pixels. Dynamic: the longer side is scaled to the grid; the shorter one then fits inside."""
    rows, columns = grid
    squash = image.split.kind == "static" and image.fit == "squash"
    return _fit(columns * image.size, rows * image.size, width, height, squash=squash, longer_side=image.split.kind == "dynamic")


def fit_overview(image: Image, width: int, height: int) -> Fit:
    """xGen-MM squashes the overview; elsewhere it is fitted like any image of one tile."""
    return _fit(image.size, image.size, width, height, squash=image.split.kind == "grids" or image.fit == "squash")


def _fit(box_width: int, box_height: int, width: int, height: int, *, squash: bool, longer_side: bool = False) -> Fit:
    if squash:
        return Fit(width=box_width, height=box_height, inner=(0, 0, box_width, box_height))
    scale = min(Fraction(box_width, width), Fraction(box_height, height))
    if longer_side:  # equal where the grid covers the image, which the choice made sure of
        scale = min(scale, Fraction(box_width, width) if width >= height else Fraction(box_height, height))
    inner_width, inner_height = (max(1, min(box, _ceil(side * scale))) for box, side in ((box_width, width), (box_height, height)))
    left, top = (box_width - inner_width) // 2, (box_height - inner_height) // 2
    return Fit(width=box_width, height=box_height, inner=(left, top, left + inner_width, top + inner_height))


def _overlap(start: Fraction, end: Fraction, begin: int, size: int) -> tuple[Fraction, Fraction] | None:
    """The part of [start, end] inside [begin, begin + size], counted from begin; None when they share no more than an edge, unless
    the span itself is a point."""
    low, high = max(start - begin, Fraction(0)), min(end - begin, Fraction(size))
    if low > high or (low == high and start != end):
        return None
    return low, high


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _tile(image: Image, canvas: Fit, row: int, column: int, image_index: int, splits: bool) -> Tile:
    x, y, size = (column - 1) * image.size, (row - 1) * image.size, image.size
    left, top, right, bottom = canvas.inner
    clipped = (max(left - x, 0), max(top - y, 0), min(right - x, size), min(bottom - y, size))
    empty = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
    text = indicator(image, row, column, image_index) if splits else ""
    return Tile(row=row, column=column, region=(0, 0, 0, 0) if empty else clipped, indicator=text)


def indicator(image: Image, row: int, column: int, image_index: int) -> str:
    """The text in front of a tile. index: `(k,i,j)`, image from 0, row and column from 1, (k,0,0) the overview. separators: `:` before
    an overview, `,` between columns, `<n>` between rows (MM1.5 section 3.3)."""
    if image.split.indicators == "index":
        return f"({image_index},{row},{column})"
    if image.split.indicators == "separators":
        if row == 0:
            return ":"
        return "," if column > 1 else ("<n>" if row > 1 else "")
    return ""
