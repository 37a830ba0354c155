"""A folder for runs."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"
