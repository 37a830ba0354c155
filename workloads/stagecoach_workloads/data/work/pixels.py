"""Encoded images to tiles: uint8, N x 3 x size x size, resized from a scaled decode. Normalising is the device's.

Shrinking averages areas, growing is bicubic (OpenCV: several times faster than Pillow here, and bit-identical from run to run).
"""

import numpy as np

from stagecoach_workloads.data.dataset import ContentError
from stagecoach_workloads.data.images import ImageRefused, decode, image_info
from stagecoach_workloads.models.splitting import Fit, Tiling


def tiles_of(body: bytes, tiling: Tiling) -> np.ndarray:
    """Returns tiles uint8 (N, 3, size, size) in the tiling's order; padding is black.

    Raises ContentError when the image cannot be decoded, or is not of the size that the index says.
    """
    try:
        info = image_info(body)
        if (info.width, info.height) != (tiling.width, tiling.height):
            raise ContentError(f"an image of {info.width}x{info.height} pixels where the index says {tiling.width}x{tiling.height}")
        pixels = decode(body, at_least=_needed(tiling), info=info)
    except ImageRefused as error:
        raise ContentError(str(error)) from None
    out = np.empty((len(tiling.tiles), 3, tiling.size, tiling.size), np.uint8)
    canvas = placed(pixels, tiling.canvas)
    for number, tile in enumerate(tiling.tiles):
        if tile.is_overview:
            assert tiling.overview is not None
            split_channels(placed(pixels, tiling.overview), out[number])
        else:
            top, left = (tile.row - 1) * tiling.size, (tile.column - 1) * tiling.size
            split_channels(canvas[top : top + tiling.size, left : left + tiling.size], out[number])
    return out


def _needed(tiling: Tiling) -> tuple[int, int]:
    """Width and height below which a scaled decode would lose what the tiles show."""
    fits = [tiling.canvas.inner, *([tiling.overview.inner] if tiling.overview else [])]
    return max(right - left for left, _, right, _ in fits), max(bottom - top for _, top, _, bottom in fits)


def placed(pixels: np.ndarray, fit: Fit) -> np.ndarray:
    """The image (height x width x 3) resized into `fit.inner`, black around it."""
    left, top, right, bottom = fit.inner
    resized = resize(pixels, right - left, bottom - top)
    if (fit.width, fit.height) == (right - left, bottom - top):
        return resized
    canvas = np.zeros((fit.height, fit.width, 3), np.uint8)
    canvas[top:bottom, left:right] = resized
    return canvas


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes height x width x 3."""
    import cv2

    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC))


def split_channels(pixels: np.ndarray, out: np.ndarray) -> None:
    """Height x width x 3 into the planes of `out` (3 x height x width)."""
    import cv2

    cv2.mixChannels([pixels], [out[0], out[1], out[2]], [0, 0, 1, 1, 2, 2])
