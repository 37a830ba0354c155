"""Encoded images: what they are, without decoding, and decoding them to uint8 within limits.

Allowed are JPEG, PNG and WEBP, told by their first bytes (a wrong file extension does not matter). At most 64 Mpx, checked on the header
before anything is allocated. Outcomes: CMYK and grey become RGB; 16 bits become 8; transparency is laid on white; of an animation
the first frame counts; EXIF orientation is applied. Sizes in the index are those after orientation.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagecoach.errors import DataError

MAX_PIXELS = 64 * 1000 * 1000
FORMATS = ("JPEG", "PNG", "WEBP")
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SEGMENT = struct.Struct(">BBH")  # of a JPEG: 0xFF, marker, length
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageRefused(DataError):
    """Bytes that are no image we read: format, size, or damaged."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header says. Width and height are as shown, after EXIF orientation."""

    format: str
    width: int
    height: int
    mode: str
    orientation: int

    @property
    def suffix(self) -> str:
        return _SUFFIX[self.format]


def sniff(body: bytes) -> str:
    """The format by its magic bytes. Raises ImageRefused for any but JPEG, PNG and WEBP."""
    if body[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if body[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    if not body:
        raise ImageRefused("an image of zero bytes")
    raise ImageRefused(f"not an image we read: it starts with {bytes(body[:8])!r}; {', '.join(FORMATS)} are read")


def image_info(body: bytes) -> ImageInfo:
    """Reads the header only. Raises ImageRefused for other formats, damage in the header, and more than 64 Mpx."""
    if sniff(body) == "JPEG" and not _has_exif(body):  # the usual case, without Pillow's detour
        return _jpeg_info(body)
    with _open(body) as picture:
        width, height = picture.size
        orientation = _orientation(picture)
        if orientation in _TURNED:
            width, height = height, width
        return ImageInfo(str(picture.format), width, height, picture.mode, orientation)


def _has_exif(body: bytes) -> bool:
    """Walks the JPEG's segments up to the scan (ITU T.81, B.1.1.4). Where they are damaged, what was walked decides."""
    at, last = 2, len(body) - _SEGMENT.size
    while at <= last:
        lead, marker, length = _SEGMENT.unpack_from(body, at)
        if lead != 0xFF or marker in (0xDA, 0xD9):  # damaged, start of scan, end of image
            return False
        if marker == 0xE1 and body[at + 4 : at + 9] == b"Exif\0":
            return True
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in (0xD8, 0x01) or 0xD0 <= marker <= 0xD7:  # no length follows
            at += 2
        else:
            at += 2 + max(2, length)
    return False


def _jpeg_info(body: bytes) -> ImageInfo:
    import simplejpeg  # type: ignore[import-untyped]

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(body, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: a colour space or subsampling it does not know
        raise ImageRefused(f"its JPEG header cannot be read: {error}") from None
    _check_size(width, height)
    mode = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB"}.get(str(colours), "CMYK")
    return ImageInfo("JPEG", width, height, mode, 1)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageRefused(f"{width} x {height} is more than {MAX_PIXELS // 10**6} Mpx: refused before it is decoded")
    if min(width, height) < 1:
        raise ImageRefused(f"{width} x {height} pixels")


def _open(body: bytes) -> Any:
    from PIL import Image

    kind = sniff(body)
    Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn of a decompression bomb; the size is checked below, before anything is decoded
    try:
        picture = Image.open(io.BytesIO(body), formats=[kind])
    except Exception as error:  # Pillow's parsers raise many kinds, SyntaxError and struct.error among them
        raise ImageRefused(f"its {kind} header cannot be read: {error}") from None
    _check_size(picture.width, picture.height)
    return picture


def _orientation(picture: Any) -> int:
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode(body: bytes, *, at_least: tuple[int, int] | None = None, info: ImageInfo | None = None) -> np.ndarray:
    """The image as shown: uint8, height x width x 3, RGB.

    `at_least` (width, height): a JPEG may come back smaller than it is, by a factor of 2, 4 or 8, but not below that size: the decoder
    skips the work. `info` spares reading the header again. Raises ImageRefused when it cannot be decoded completely.
    """
    info = info or image_info(body)
    if info.format == "JPEG" and info.mode in ("RGB", "L") and info.orientation == 1:
        return _decode_jpeg(body, scaled_size(info.width, info.height, at_least))
    return _decode_any(body, info)


def scaled_size(width: int, height: int, at_least: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height to decode to: halved up to three times while both stay at or above `at_least`.

    libjpeg-turbo could scale by any n/8, but only these factors have vector code: 6/8 takes twice as long as the whole image (measured).
    """
    factor = 1
    while at_least and factor < 8 and width // (2 * factor) >= at_least[0] and height // (2 * factor) >= at_least[1]:
        factor *= 2
    return -(-width // factor), -(-height // factor)


def _decode_jpeg(body: bytes, size: tuple[int, int]) -> np.ndarray:
    import simplejpeg

    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            body, "RGB", fastdct=True, fastupsample=True, min_width=size[0], min_height=size[1], min_factor=1, strict=True
        )
    except ValueError as error:
        raise ImageRefused(f"a JPEG that cannot be decoded: {error}") from None
    return pixels


def _decode_any(body: bytes, info: ImageInfo) -> np.ndarray:
    from PIL import Image, ImageOps

    with _open(body) as picture:
        try:
            picture.load()
        except Exception as error:  # as above: any kind
            raise ImageRefused(f"a {info.format} that cannot be decoded: {error}") from None
        shown = ImageOps.exif_transpose(picture) if info.orientation != 1 else picture
        if shown.mode in ("I;16", "I;16B", "I;16L", "I"):
            return np.repeat((np.asarray(shown).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        if shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info:
            layered = shown.convert("RGBA")
            white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            shown = Image.alpha_composite(white, layered)
        return np.array(shown.convert("RGB"))
