"""A tiny made corpus for toy pipelines."""

from pathlib import Path

import pytest

from stagecoach.testing.flow_world import DATASETS
from stagecoach_workloads.data.made.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a corpus with captions and conversations; read-only."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=[*DATASETS])
    return f"file://{folder}"


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"
