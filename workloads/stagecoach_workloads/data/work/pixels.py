"""Encoded images to tiles: uint8, resized from a scaled decode straight into the batch's memory. Normalising is the device's.

Tiles lie in memory as height x width x 3 (PyTorch's channels_last), which is how decoders write: no plane is ever copied apart.
Strong shrinking averages areas, slight shrinking is bilinear (softened first where needed), growing is bicubic (OpenCV: several times
faster than Pillow here, and bit-identical from run to run).
"""

from dataclasses import dataclass

import numpy as np

from stagecoach_workloads.data.dataset import ContentError
from stagecoach_workloads.data.images import ImageInfo, ImageRefused, decode, image_info
from stagecoach_workloads.models.splitting import Fit, Tiling

# Bilinear interpolation of pixels blurred along each side that shrinks by more than _SOFTEN is, up to _SLIGHT, within 0.5 dB of averaging
# areas (PSNR against Pillow's antialiased bicubic of the whole image) in a fifth of its time: workloads/decisions, "Scaled decode".
_SOFTEN, _SLIGHT = 1.4, 2.8


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image whose header was read, and what is to become of it. `at_least` (width, height): below it a scaled decode would
    lose what the tiles show."""

    body: bytes
    tiling: Tiling
    info: ImageInfo
    at_least: tuple[int, int]


def picture_of(body: bytes, tiling: Tiling) -> Picture:
    """Raises ContentError when the header cannot be read, or the image is not of the size that the index says."""
    try:
        info = image_info(body)
    except ImageRefused as error:
        raise ContentError(str(error)) from None
    if (info.width, info.height) != (tiling.width, tiling.height):
        raise ContentError(f"an image of {info.width}x{info.height} pixels where the index says {tiling.width}x{tiling.height}")
    return Picture(body, tiling, info, _needed(tiling))


def tiles_of(body: bytes, tiling: Tiling) -> np.ndarray:
    """Returns tiles uint8 (N, size, size, 3) in the tiling's order; padding is black. Raises ContentError for a bad image."""
    out = np.empty((len(tiling.tiles), tiling.size, tiling.size, 3), np.uint8)
    write_tiles(picture_of(body, tiling), out)
    return out


def write_tiles(picture: Picture, out: np.ndarray) -> None:
    """Fills `out` (N, size, size, 3). Raises ContentError when the image cannot be decoded."""
    tiling = picture.tiling
    try:
        pixels = decode(picture.body, at_least=picture.at_least, info=picture.info)
    except ImageRefused as error:
        raise ContentError(str(error)) from None
    if len(tiling.tiles) == 1:
        place_into(pixels, tiling.canvas, out[0])
        return
    canvas = np.empty((tiling.canvas.height, tiling.canvas.width, 3), np.uint8)
    place_into(pixels, tiling.canvas, canvas)
    for number, tile in enumerate(tiling.tiles):
        if tile.is_overview:
            assert tiling.overview is not None
            place_into(pixels, tiling.overview, out[number])
        else:
            top, left = (tile.row - 1) * tiling.size, (tile.column - 1) * tiling.size
            out[number] = canvas[top : top + tiling.size, left : left + tiling.size]


def _needed(tiling: Tiling) -> tuple[int, int]:
    """Width and height below which a scaled decode would lose what the tiles show."""
    fits = [tiling.canvas.inner, *([tiling.overview.inner] if tiling.overview else [])]
    return max(right - left for left, _, right, _ in fits), max(bottom - top for _, top, _, bottom in fits)


def place_into(pixels: np.ndarray, fit: Fit, out: np.ndarray) -> None:
    """The image (height x width x 3) resized into `fit.inner` of `out`, black around it."""
    left, top, right, bottom = fit.inner
    if (fit.width, fit.height) != (right - left, bottom - top):
        out[:top], out[bottom:] = 0, 0
        out[top:bottom, :left], out[top:bottom, right:] = 0, 0
    resize_into(pixels, out[top:bottom, left:right])


def resize_into(pixels: np.ndarray, out: np.ndarray) -> None:
    """Resizes height x width x 3 to the size of `out`, in its memory where that is possible."""
    import cv2

    height, width = out.shape[:2]
    if pixels.shape[:2] == (height, width):
        out[:] = pixels
        return
    pixels, method = _prepared(pixels, width, height)
    if out.flags.c_contiguous:
        cv2.resize(pixels, (width, height), dst=out, interpolation=method)
    else:
        out[:] = cv2.resize(pixels, (width, height), interpolation=method)


def _prepared(pixels: np.ndarray, width: int, height: int) -> tuple[np.ndarray, int]:
    """Pixels and the method by which they become width x height without a fine pattern turning into a coarse one."""
    import cv2

    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    if max(down, across) <= 1:
        return pixels, cv2.INTER_CUBIC
    if max(down, across) > _SLIGHT:
        if min(down, across) >= 1:
            return pixels, cv2.INTER_AREA
        # averaging needs both sides to shrink: the side that grows waits
        shrunk = min(width, pixels.shape[1]), min(height, pixels.shape[0])
        return cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA), cv2.INTER_CUBIC
    kernel = (3 if across > _SOFTEN else 1, 3 if down > _SOFTEN else 1)
    return (cv2.GaussianBlur(pixels, kernel, 0) if max(kernel) > 1 else pixels), cv2.INTER_LINEAR
