"""One tiny made corpus for all tests of this folder."""

from pathlib import Path

import pytest

from stagecoach_workloads.data.made.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=("captions", "captions_synthetic", "interleaved", "text"))
    return f"file://{folder}"
