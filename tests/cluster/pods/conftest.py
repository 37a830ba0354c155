"""Pods that really run: nodes and a training image that is loaded into them, named by STAGECOACH_TEST_IMAGE."""

import os
from collections.abc import Iterator

import pytest

from stagecoach.testing.cluster_world import PodWorld

IMAGE = os.environ.get("STAGECOACH_TEST_IMAGE", "")
if not IMAGE:
    collect_ignore_glob = ["test_*.py"]  # these are asked for by naming an image, since building one takes minutes


@pytest.fixture
def pods() -> Iterator[PodWorld]:
    there = PodWorld(IMAGE)
    yield there
    there.close()
