"""Boxes on images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach_workloads.telemetry.drawing import COLOURS, clip_box, draw_boxes


def test_a_box_is_drawn_where_it_is_and_nowhere_else() -> None:
    image_HWC = np.zeros((100, 120, 3), np.uint8)
    drawn = draw_boxes(image_HWC, [(10, 20, 60, 80)])
    assert not image_HWC.any()
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 80, 10, 60)
    assert tuple(drawn[20, 30]) == COLOURS[0]
    assert not drawn[40:60, 30:50].any()  # inside


def test_labels_are_written_in_the_colour_of_their_box() -> None:
    drawn = draw_boxes(np.zeros((100, 120, 3), np.uint8), [(10, 20, 60, 80), (70, 20, 110, 60)], ["кот 猫", "dog"])
    outside_the_boxes = drawn[:19, 60:]
    assert (outside_the_boxes == np.array(COLOURS[1])).all(axis=2).any()


@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4), max_size=3), st.lists(st.text(max_size=100), max_size=3))
def test_whatever_a_model_predicts_is_survived(boxes: list[tuple[float, float, float, float]], labels: list[str]) -> None:
    assert draw_boxes(np.zeros((8, 9, 3), np.uint8), boxes, labels).shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((5, 6, 2, 1), (2, 1, 5, 6)),
        ((-5, -5, 500, 500), (0, 0, 19, 9)),
        ((30, 2, 40, 5), None),
        ((4, 4, 4, 8), None),
        ((0, 0, float("nan"), 5), None),
    ],
)
def test_what_is_left_of_a_box(box: tuple[float, float, float, float], kept: tuple[float, float, float, float] | None) -> None:
    assert clip_box(box, 20, 10) == kept
