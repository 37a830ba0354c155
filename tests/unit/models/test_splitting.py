"""Tiles: the grids against literal readings of the papers, and boxes there and back."""

import io
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.plan import Image, Split
from stagecoach.costs.tiles import choose_grid, grids
from stagecoach.errors import DataError
from stagecoach_workloads.data.work.pixels import tiles_of
from stagecoach_workloads.models.splitting import Tiling, plan_tiles
from stagecoach_workloads.models.tiles import join_tiles

DYNAMIC = Split(kind="dynamic", min_tiles=4, max_tiles=9, overview="after", indicators="index")
STATIC = Split(kind="static", rows=2, columns=2, overview="before")
XGEN_V1 = Split(kind="grids", min_tiles=2, max_tiles=4, max_side=3, overview="before", below_images=2)
XGEN_V4 = replace(XGEN_V1, max_tiles=12, max_side=4)
SPLITS = {"dynamic": DYNAMIC, "static": STATIC, "xgen v1": XGEN_V1, "xgen v4": XGEN_V4, "none": Split()}


def mm1_5_grid(width: int, height: int, tile: int, low: int, high: int) -> tuple[int, int]:
    """Equation 1 read word by word, in fractions."""
    no_loss, loss = [], []
    for rows in range(1, high + 1):
        for columns in range(1, high + 1):
            if not low <= rows * columns <= high:
                continue
            scale = Fraction(columns * tile, width) if width >= height else Fraction(rows * tile, height)
            scaled_height, scaled_width = scale * height, scale * width
            if scaled_height > rows * tile or scaled_width > columns * tile:
                continue
            if scaled_height >= height and scaled_width >= width:
                no_loss.append((rows * columns * tile**2 - scaled_height * scaled_width, rows * columns, (rows, columns)))
            else:
                loss.append((-scale, rows * columns, (rows, columns)))
    return min(no_loss or loss)[2]


def llava_grid(width: int, height: int, tile: int, choices: list[tuple[int, int]]) -> tuple[int, int]:
    """LLaVA's select_best_resolution, with its truncation (a side never below one pixel)."""
    best, best_effective, best_waste = choices[0], 0, 10**18
    for rows, columns in choices:
        scale = min(Fraction(columns * tile, width), Fraction(rows * tile, height))
        effective = min(max(1, int(width * scale)) * max(1, int(height * scale)), width * height)
        waste = rows * columns * tile**2 - effective
        if effective > best_effective or (effective == best_effective and waste < best_waste):
            best, best_effective, best_waste = (rows, columns), effective, waste
    return best


sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(size=sizes, high=st.integers(4, 16), tile=st.sampled_from([8, 378, 672]))
def test_dynamic_grid_is_equation_1(size: tuple[int, int], high: int, tile: int) -> None:
    split = replace(DYNAMIC, max_tiles=high)
    assert choose_grid(split, tile, *size) == mm1_5_grid(*size, tile, 4, high)


@given(size=sizes)
def test_xgen_grid_is_llavas(size: tuple[int, int]) -> None:
    for split in (XGEN_V1, XGEN_V4):
        assert choose_grid(split, 384, *size) == llava_grid(*size, 384, grids(split))


def test_known_cases_of_the_papers() -> None:
    assert len(grids(DYNAMIC)) == 18
    assert len(grids(replace(DYNAMIC, max_tiles=16))) == 45
    assert choose_grid(DYNAMIC, 672, 640, 480) == (2, 2)  # the longer side decides: not (2, 3)
    assert choose_grid(DYNAMIC, 672, 1000, 1000) == (2, 2)  # a tie with (3, 3): the fewest tiles
    assert choose_grid(DYNAMIC, 672, 2016, 2016) == (3, 3)
    assert choose_grid(DYNAMIC, 672, 6048, 672) == (1, 9)
    assert sorted(grids(XGEN_V1)) == [(1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    assert max(rows * columns for rows, columns in grids(XGEN_V4)) == 12
    assert len(plan_tiles(Image(size=384, split=XGEN_V4), 2000, 1500).tiles) == 13  # 12 and the overview


def test_order_and_indicators() -> None:
    image = Image(size=8, split=DYNAMIC)
    tiling = plan_tiles(image, 16, 16, image_index=1)
    assert [tile.indicator for tile in tiling.tiles] == ["(1,1,1)", "(1,1,2)", "(1,2,1)", "(1,2,2)", "(1,0,0)"]
    separated = replace(image, split=replace(STATIC, indicators="separators"))
    assert [tile.indicator for tile in plan_tiles(separated, 16, 16).tiles] == [":", "", ",", "<n>", ","]
    assert len(plan_tiles(image, 16, 16, images_in_sample=2).tiles) == 5
    assert [tile.indicator for tile in plan_tiles(image, 16, 16, images_in_sample=3).tiles] == [""]  # three images: not split
    single = replace(image, split=replace(DYNAMIC, min_tiles=1))
    assert plan_tiles(single, 8, 8).overview is None  # a 1 x 1 grid is its own overview


def every_tiling() -> list[Tiling]:
    """Each grid of each split, by drawing sizes until all have come."""
    draw, found = random.Random(0), {}
    for split in SPLITS.values():
        for fit in ("pad", "squash"):
            image = Image(size=16, split=split, fit=fit)  # type: ignore[arg-type]
            for _ in range(400):
                tiling = plan_tiles(image, draw.randint(1, 200), draw.randint(1, 200))
                found.setdefault((split, fit, tiling.grid), tiling)
        if split.kind == "dynamic":
            assert {grid for chosen, _, grid in found if chosen is split} == set(grids(split))
    return list(found.values())


def test_a_box_survives_tiling_and_back_on_every_grid() -> None:
    draw = random.Random(1)
    for tiling in every_tiling():
        for _ in range(5):
            (left, right), (top, bottom) = (sorted(draw.randint(0, side) for _ in "ab") for side in (tiling.width, tiling.height))
            box = (left, top, right, bottom)
            parts = tiling.to_tiles(box)
            assert parts
            assert tiling.from_tiles(parts) == box
            assert all(0 <= edge <= tiling.size for _, part in parts for edge in part)
            if tiling.overview is not None:
                whole = next(tile for tile in tiling.tiles if tile.is_overview)
                assert tiling.from_tile(whole, tiling.overview.forward(box, (tiling.width, tiling.height))) == box


def test_padding_and_regions_add_up_on_every_grid() -> None:
    for tiling in every_tiling():
        left, top, right, bottom = tiling.canvas.inner
        cells = [tile.region for tile in tiling.tiles if not tile.is_overview]
        assert sum((r - x) * (b - t) for x, t, r, b in cells) == (right - left) * (bottom - top)
        assert abs(left - (tiling.canvas.width - right)) <= 1  # centred


def png(image_HWC: np.ndarray) -> bytes:
    found = io.BytesIO()
    PIL.Image.fromarray(image_HWC).save(found, "PNG")
    return found.getvalue()


def test_a_drawn_box_is_where_it_was_after_cutting_and_joining() -> None:
    for tiling in every_tiling()[::3]:
        if min(tiling.width, tiling.height) < 4:
            continue
        image = np.zeros((tiling.height, tiling.width, 3), np.uint8)
        box = (tiling.width // 4, tiling.height // 4, tiling.width // 2 + 1, tiling.height // 2 + 1)
        image[box[1] : box[3], box[0] : box[2]] = 255
        tiles = torch.from_numpy(tiles_of(png(image), tiling)).permute(0, 3, 1, 2)
        assert tiles.shape == (len(tiling.tiles), 3, 16, 16)
        left, top, right, bottom = tiling.canvas.inner
        joined = join_tiles(tiles, tiling)
        assert joined.shape[1:] == (bottom - top, right - left)
        for tile, part in tiling.to_tiles(box):
            if part[2] - part[0] >= 4 and part[3] - part[1] >= 4:  # far enough from the edge, which resizing blurs
                x, y = int((part[0] + part[2]) / 2), int((part[1] + part[3]) / 2)
                assert tiles[tiling.tiles.index(tile), 0, y, x] > 200
        for place, tile in enumerate(tiling.tiles):
            padding, (x, y, right, bottom) = tiles[place].clone(), tile.region
            padding[:, y:bottom, x:right] = 0
            assert not padding.any()


def test_tiles_of_a_wide_grid_are_tiles_and_not_bands() -> None:
    tiling = plan_tiles(Image(size=4, split=replace(STATIC, overview="none"), fit="squash"), 8, 8)
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    tiles = torch.from_numpy(tiles_of(png(image), tiling)).permute(0, 3, 1, 2)
    whole = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(tiles[1], whole[:, :4, 4:])
    assert torch.equal(join_tiles(tiles, tiling), whole)
    features = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 5, 2, 2)  # 2 x 2 features of each tile
    assert join_tiles(features, tiling)[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(DataError, match="3 tiles for a tiling of 4"):
        join_tiles(tiles[:3], tiling)


def test_an_empty_image_is_named() -> None:
    with pytest.raises(DataError, match="an image of 0x20 pixels cannot be encoded"):
        plan_tiles(Image(size=8), 0, 20)


def test_the_rule_needs_no_torch() -> None:
    script = "import sys, stagecoach_workloads.models.splitting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
