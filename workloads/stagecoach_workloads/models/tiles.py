"""Pixels of tiles: cuts an image as its `Tiling` says, and puts tiles together again. H x W pixels, S a tile's side, N tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.errors import DataError
from stagecoach_workloads.models.splitting import Fit, Tiling

PADDING_COLOUR = 0  # black, as xGen-MM; MM1.5 states none


def cut_tiles(image_CHW: Tensor, tiling: Tiling) -> Tensor:
    """Returns tiles_NCSS (uint8), resized (bicubic, antialiased) and padded, in the tiling's order.

    Raises DataError when the image is not uint8 RGB of the tiling's size.
    """
    check_image(image_CHW, tiling)
    size, (rows, columns) = tiling.size, tiling.grid
    canvas_CHW = place(image_CHW, tiling.canvas)
    grid_CRSCS = canvas_CHW.view(3, rows, size, columns, size)
    cells_NCSS = grid_CRSCS.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, size, size)
    if tiling.overview is None:
        return cells_NCSS
    overview_1CSS = place(image_CHW, tiling.overview)[None]
    first = tiling.tiles[0].is_overview
    return torch.cat((overview_1CSS, cells_NCSS) if first else (cells_NCSS, overview_1CSS))


def join_tiles(tiles_NCSS: Tensor, tiling: Tiling) -> Tensor:
    """Returns the canvas_CHW that tiles were cut from, cut to the image; the overview is left out. Works on feature maps of tiles too
    when S divides `tiling.size` (each tile is put where it was: not a plain view, which would give horizontal bands)."""
    rows, columns = tiling.grid
    cells = [tile for tile, place in zip(tiles_NCSS, tiling.tiles, strict=True) if not place.is_overview]
    side = tiles_NCSS.shape[-1]
    whole_CHW = torch.stack(cells).view(rows, columns, -1, side, side).permute(2, 0, 3, 1, 4).reshape(-1, rows * side, columns * side)
    left, top, right, bottom = (edge * side // tiling.size for edge in tiling.canvas.inner)
    return whole_CHW[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def tile_regions(tiling: Tiling) -> Tensor:
    """Returns regions_N4 (top, left, bottom, right): each tile's pixels that are no padding, for `MultimodalModel.forward`."""
    lines = [(top, left, bottom, right) for left, top, right, bottom in (tile.region for tile in tiling.tiles)]
    return torch.tensor(lines, dtype=torch.int64)


def place(image_CHW: Tensor, fit: Fit) -> Tensor:
    """Resizes into `fit.inner` and pads around it."""
    left, top, right, bottom = fit.inner
    resized_CHW = F.interpolate(image_CHW[None], size=(bottom - top, right - left), mode="bicubic", antialias=True)[0]
    return F.pad(resized_CHW, (left, fit.width - right, top, fit.height - bottom), value=PADDING_COLOUR)


def check_image(image_CHW: Tensor, tiling: Tiling) -> None:
    """Raises DataError for a wrong mode, type or size."""
    if image_CHW.dim() != 3 or image_CHW.shape[0] != 3:
        raise DataError(f"an image of shape {tuple(image_CHW.shape)} is not 3 x height x width; convert it to RGB first")
    if image_CHW.dtype != torch.uint8:
        raise DataError(f"an image of type {image_CHW.dtype}; tiles are cut from uint8, and normalised on the device")
    if image_CHW.shape[1:] != (tiling.height, tiling.width):
        height, width = image_CHW.shape[1:]
        raise DataError(f"an image of {width}x{height} pixels where the index says {tiling.width}x{tiling.height}; index the dataset again")
