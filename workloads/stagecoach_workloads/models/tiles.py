"""Un-tiling: what was computed per tile, put together as it lies in the image. N tiles, C channels, S a tile's side.

Cutting is the data room's (`data/work/pixels.py`), from a scaled decode; the geometry of both is `splitting.py`.
"""

import torch
from torch import Tensor

from stagecoach.errors import DataError
from stagecoach_workloads.models.splitting import Tiling


def join_tiles(tiles_NCSS: Tensor, tiling: Tiling) -> Tensor:
    """Returns map_CHW: tiles (pixels, or feature maps of any side S) put where they were cut, padding and overview left out.

    Each tile is moved to its row and column; a plain view of the merged map, as the public BLIP-3 code re-splits, gives horizontal bands.
    Raises DataError when there are more or fewer tiles than the tiling has.
    """
    if len(tiles_NCSS) != len(tiling.tiles):
        raise DataError(f"{len(tiles_NCSS)} tiles for a tiling of {len(tiling.tiles)}; give all of them, the overview included")
    rows, columns = tiling.grid
    side = tiles_NCSS.shape[-1]
    cells = [tile for tile, place in zip(tiles_NCSS, tiling.tiles, strict=True) if not place.is_overview]
    whole_CHW = torch.stack(cells).view(rows, columns, -1, side, side).permute(2, 0, 3, 1, 4).reshape(-1, rows * side, columns * side)
    left, top, right, bottom = (edge * side // tiling.size for edge in tiling.canvas.inner)
    return whole_CHW[:, top : max(bottom, top + 1), left : max(right, left + 1)]
