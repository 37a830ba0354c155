"""Images: what is refused, and what everything that is read becomes (B31-B33)."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from stagecoach.contract.plan import Image as ImageSettings
from stagecoach.contract.plan import Split
from stagecoach_workloads.data.dataset import ContentError
from stagecoach_workloads.data.images import ImageRefused, decode, image_info
from stagecoach_workloads.data.work.pixels import tiles_of
from stagecoach_workloads.models.splitting import plan_tiles


def saved(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    held = io.BytesIO()
    picture.save(held, kind, **options)
    return held.getvalue()


def gradient(width: int = 120, height: int = 80) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def palette_with_alpha() -> Image.Image:
    """Left red, right blue; blue (entry 1 of the palette) is transparent."""
    picture = Image.new("P", (4, 2))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 0, 1, 1] * 2)
    return picture


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels; 66 bytes or so."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"x")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "zero bytes"),
        (b"GIF89a" + bytes(40), "not an image we read"),
        (b"II*\0" + bytes(40), "not an image we read"),
        (b"8BPS" + bytes(40), "not an image we read"),
        (b"%!PS-Adobe EPSF", "not an image we read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image we read"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "not an image we read"),
        (b"\xff\xd8\xff\xe0 no jpeg", "header cannot be read"),
        (bomb(60_000, 60_000), "refused before it is decoded|header cannot be read"),
        (bomb(13_400, 13_400), "refused before it is decoded|header cannot be read"),
        (bomb(8_100, 8_000), "64 Mpx: refused before it is decoded"),
    ],
)
def test_refused_before_anything_is_allocated(body: bytes, says: str) -> None:
    with pytest.raises(ImageRefused, match=says):
        image_info(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(kind: str) -> None:
    body = saved(gradient(), kind)
    with pytest.raises(ImageRefused):
        decode(body[: len(body) * 2 // 3])


RED_AND_WHITE = np.array([[[255, 0, 0]] * 2 + [[255] * 3] * 2] * 2, np.uint8)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (saved(gradient().convert("CMYK")), None),
        (saved(gradient().convert("L")), None),
        (saved(gradient().convert("P"), "PNG"), None),
        (saved(gradient(), "WEBP", lossless=True), np.asarray(gradient())),
        (saved(gradient(1, 1), "PNG"), np.asarray(gradient(1, 1))),
        (saved(gradient(30_000, 4), "PNG"), np.asarray(gradient(30_000, 4))),
        (saved(Image.new("RGBA", (5, 4), (255, 0, 0, 0)), "PNG"), np.full((4, 5, 3), 255, np.uint8)),
        (saved(palette_with_alpha(), "PNG", transparency=1), RED_AND_WHITE),
        (saved(palette_with_alpha(), "PNG", transparency=b"\xff\x00"), RED_AND_WHITE),
        (saved(Image.fromarray(np.full((4, 5), 0x8000, np.uint16)), "PNG"), np.full((4, 5, 3), 0x80, np.uint8)),
        (saved(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(180)], lossless=True), np.asarray(gradient())),
    ],
    ids=[
        "cmyk",
        "grey",
        "palette",
        "webp",
        "1x1",
        "30000 wide",
        "alpha on white",
        "palette and transparent entry",
        "palette and alphas",
        "16 bit",
        "animated",
    ],
)
def test_every_kind_becomes_rgb_uint8_of_its_size(body: bytes, expected: np.ndarray | None) -> None:
    info, pixels = image_info(body), decode(body)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (info.height, info.width, 3)
    if expected is not None:
        assert (pixels == expected).all()


def test_orientation_is_applied_and_sizes_are_those_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    body = saved(gradient(120, 80), exif=exif)
    assert (image_info(body).width, image_info(body).height) == (80, 120)
    assert decode(body).shape == (120, 80, 3)


def test_a_wrong_extension_does_not_matter_but_a_wrong_size_does() -> None:
    tiling = plan_tiles(ImageSettings(size=32), 100, 80)
    with pytest.raises(ContentError, match="120x80 pixels where the index says 100x80"):
        tiles_of(saved(gradient(), "PNG"), tiling)


def test_a_scaled_decode_is_close_to_resizing_the_whole_image() -> None:
    body = saved(gradient(1000, 700), quality=95)
    tiling = plan_tiles(ImageSettings(size=96, fit="squash"), 1000, 700)
    mine = tiles_of(body, tiling)[0].astype(int)
    whole = np.asarray(Image.open(io.BytesIO(body)).resize((96, 96), Image.Resampling.BOX)).astype(int)
    assert np.abs(mine - whole).mean() < 2


def test_tiles_are_the_quarters_of_the_image_and_the_overview_is_all_of_it() -> None:
    picture = Image.new("RGB", (64, 64))
    for place, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]):
        picture.paste(colour, (place % 2 * 32, place // 2 * 32, place % 2 * 32 + 32, place // 2 * 32 + 32))
    split = Split(kind="static", rows=2, columns=2, overview="after")
    tiles = tiles_of(saved(picture, "PNG"), plan_tiles(ImageSettings(size=32, split=split), 64, 64))
    assert tiles.shape == (5, 32, 32, 3)
    assert [tuple(tile.mean(axis=(0, 1)).astype(int)) for tile in tiles[:4]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert tuple(tiles[4][2, 2]) == (255, 0, 0)
    assert tuple(tiles[4][-3, -3]) == (255, 255, 0)


def test_padding_is_black_and_stands_on_both_sides() -> None:
    tiling = plan_tiles(ImageSettings(size=32, fit="pad"), 64, 32)
    tile = tiles_of(saved(Image.new("RGB", (64, 32), (255, 255, 255)), "PNG"), tiling)[0]
    assert (tile[:8] == 0).all()
    assert (tile[8:24] == 255).all()
    assert (tile[24:] == 0).all()


@pytest.mark.parametrize(("width", "height"), [(500, 375), (130, 120), (1900, 1500), (60, 45), (900, 40)])
def test_every_way_of_resizing_is_close_to_pillow(width: int, height: int) -> None:
    """Slight and strong shrinking, growing, and one side of each: never a pixel skipped, which a fine pattern would show."""
    stripes = np.zeros((height, width, 3), np.uint8)
    stripes[:, ::2] = 200
    picture = Image.fromarray(stripes) if width > 1000 else gradient(width, height)
    tile = tiles_of(saved(picture, "PNG"), plan_tiles(ImageSettings(size=96, fit="squash"), width, height))[0].astype(int)
    reference = np.asarray(picture.resize((96, 96), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(tile - reference).mean() < 3


def test_exif_is_found_behind_other_segments_and_damage_in_front_of_the_scan_is_no_matter() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    body = saved(gradient(120, 80), exif=exif)
    comment = b"\xff\xfe" + (60_002).to_bytes(2, "big") + bytes(60_000)
    late = body[:2] + comment + comment + body[2:]  # beyond the first 64 KiB
    assert image_info(late).orientation == 8
    assert image_info(b"\xff\xd8\xff\xff" + saved(gradient())[3:]).orientation == 1  # fill bytes before a marker


def test_opening_images_in_threads_leaves_the_process_s_warnings_alone() -> None:
    """Filters are of the process: a thread that makes them errors for a moment turns any other thread's warning into a crash (seen)."""
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(4) as pool:
            opened = [pool.submit(image_info, out.getvalue()) for _ in range(400)]
            while not all(future.done() for future in opened):
                assert warnings.filters[0][0] == "ignore"
        assert {(info.result().width, info.result().height) for info in opened} == {(64, 48)}
