"""A job in memory or in a folder."""

import uuid
from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach.storage import StoreSettings


@pytest.fixture
def job() -> JobFolder:
    return JobFolder.open(f"memory://{uuid.uuid4().hex}/runs/r1/stages/00-pretrain")


@pytest.fixture
def job_on_disk(tmp_path: Path) -> JobFolder:
    return JobFolder.open(f"{tmp_path.as_uri()}/runs/r1/stages/00-pretrain", settings=StoreSettings(fsync=False))
