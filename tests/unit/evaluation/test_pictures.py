"""Pictures to look at: how large they become."""

import numpy as np
import pytest
from PIL import Image

from stagecoach_workloads.evaluation import pictures
from stagecoach_workloads.evaluation.pictures import MOST_SIDE


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((48, 48), (192, 192)),
        ((20, 300), (40, 600)),
        ((1, 20_000), (1, MOST_SIDE)),
        ((1000, 3000), (256, MOST_SIDE)),
        ((600, 700), (600, 700)),
    ],
)
def test_small_images_are_enlarged_and_never_beyond_what_is_shown(
    size: tuple[int, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, to, *rest, **named: (sizes.append(to), resize(image, to, *rest, **named))[1])
    assert pictures._enlarged(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)
    assert all(max(to) <= MOST_SIDE for to in sizes)
