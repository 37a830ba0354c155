"""One tiny made corpus for all unit tests, made by whichever of the test processes needs it first."""

from pathlib import Path

import pytest
from filelock import FileLock

from stagecoach_workloads.data.made.corpus import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    """URI of all 17 datasets of the tiny profile; read-only."""
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base.parent if hasattr(request.config, "workerinput") else base) / "corpus"
    with FileLock(f"{folder}.lock"):
        make_corpus(f"file://{folder}", profile="tiny")  # what is finished is left alone
    return f"file://{folder}"
