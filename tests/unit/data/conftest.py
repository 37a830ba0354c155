"""One tiny made corpus for all tests of this folder."""

from pathlib import Path

import pytest

from stagecoach_workloads.data.made.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a tiny corpus; read-only."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny")
    return f"file://{folder}"
