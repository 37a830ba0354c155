"""A tiny made corpus (two datasets) and a folder for runs."""

from pathlib import Path

import pytest

from stagecoach_workloads.data.made.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a corpus with captions, interleaved documents and text; read-only."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=["captions", "captions_synthetic", "interleaved", "text"])
    return f"file://{folder}"


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"
