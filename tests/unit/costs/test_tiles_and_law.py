"""Splitting and the learning-rate law, against the papers' numbers."""

import time

import pytest

from stagecoach.contract.plan import Split
from stagecoach.costs import peak_lr, weight_decay
from stagecoach.costs.load import image_tokens
from stagecoach.costs.tiles import choose_grid, grids, most_tiles
from stagecoach.recipes import parts, recipe_function


def dynamic(least: int, most: int) -> Split:
    return Split(kind="dynamic", min_tiles=least, max_tiles=most, overview="after")


@pytest.mark.parametrize(("least", "most", "expected"), [(4, 9, 18), (4, 16, 45)])
def test_numbers_of_grids_are_the_papers(least: int, most: int, expected: int) -> None:
    assert len(grids(dynamic(least, most))) == expected


def test_grids_of_4_to_9_are_the_listed_ones() -> None:
    lines = {(1, n) for n in range(4, 10)} | {(n, 1) for n in range(4, 10)}
    assert set(grids(dynamic(4, 9))) == lines | {(2, 2), (2, 3), (3, 2), (2, 4), (4, 2), (3, 3)}


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(640, 480, (2, 2)), (480, 640, (2, 2)), (672, 672, (2, 2)), (2016, 2016, (3, 3)), (6048, 672, (1, 9)), (300, 2700, (9, 1))],
)
def test_dynamic_grid_of_a_size(width: int, height: int, grid: tuple[int, int]) -> None:
    assert choose_grid(dynamic(4, 9), 672, width, height) == grid


def test_ten_thousand_tiles_are_counted_without_trying_every_grid_for_every_question() -> None:
    split = dynamic(1, 10_000)
    started = time.process_time()
    answers = {(most_tiles(split), choose_grid(split, 672, 640, 480), len(grids(split))) for _ in range(100)}
    took = time.process_time() - started
    assert answers == {(10_001, (3, 4), sum(10_000 // rows for rows in range(1, 10_001)))}
    assert took < 2.5, f"{took:.1f} s of CPU for 100 answers; 0.2 s an answer is what it takes without remembering"


def test_blip3_grids_are_the_published_ones() -> None:
    assert set(grids(parts.any_resolution(384, max_tiles=4, max_side=3).split)) == {(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)}
    high = parts.any_resolution(384, max_tiles=12, max_side=4).split
    assert {(3, 4), (4, 3)} <= set(grids(high))
    assert (4, 4) not in grids(high)
    assert most_tiles(high) == 13


@pytest.mark.parametrize(
    ("recipe", "stage", "kind", "tokens"),
    [
        ("mm1_3b", "pretrain", "most", 144),
        ("mm1_3b", "sft", "most", 720),
        ("mm1_5_3b", "continual", "most", 720),
        ("mm1_5_3b", "sft", "most", 1440),
        ("mm1_5_3b", "sft", "typical", 720),
        ("blip3_4b", "sft", "typical", 640),
    ],
)
def test_tokens_per_image_are_the_papers(recipe: str, stage: str, kind: str, tokens: int) -> None:
    assert image_tokens(recipe_function(recipe)().stage(stage).model)[kind] == tokens


def test_a_clip_takes_the_papers_positions() -> None:
    video = recipe_function("mm1_5_3b")().stage("video")
    assert video.data.frames * video.model.connector.tokens == 3456


@pytest.mark.parametrize(
    ("n", "eta"),
    [(9e6, 6.75e-4), (85e6, 2.62e-4), (302e6, 1.54e-4), (1.2e9, 8.58e-5), (2.9e9, 5.92e-5), (3.0e9, 5.83e-5), (6.4e9, 4.24e-5),
     (7.0e9, 4.08e-5), (30e9, 2.21e-5)],
)  # fmt: skip
def test_the_law_gives_the_papers_table(n: float, eta: float) -> None:
    assert peak_lr(n) == pytest.approx(eta, rel=4e-3)
    assert weight_decay(peak_lr(n)) == pytest.approx(0.1 * eta, rel=4e-3)
