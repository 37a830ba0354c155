"""Real processes under a folder of the test's own; none is left when the test is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.testing.local_world import LocalWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LocalWorld]:
    there = LocalWorld(tmp_path)
    yield there
    there.close()
