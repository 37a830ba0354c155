"""A job with two committed checkpoints, made once by the real saving process, and copies of it to spoil."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.testing.checkpointing import build_checkpoints, rank_context, whole_state

JOB = "runs/r/stages/00-pretrain"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with steps 10 and 20 of one attempt. Copy it before changing it."""
    root = tmp_path_factory.mktemp("saved")
    checkpoints = build_checkpoints(rank_context(f"file://{root}/{JOB}", root / "local"))
    for step in (10, 20):
        checkpoints.save(step, whole_state(step))
        checkpoints.before_update()
        assert checkpoints.wait(120)
    checkpoints.close()
    return root


@pytest.fixture
def job(saved: Path, tmp_path: Path) -> JobFolder:
    """A copy under another root, as a bucket that was moved."""
    shutil.copytree(saved, tmp_path / "root")
    return JobFolder.open(f"file://{tmp_path}/root/{JOB}")


@pytest.fixture
def build(job: JobFolder, tmp_path: Path) -> Callable[..., Checkpoints]:
    """build(**changes): one more attempt of the job."""
    made: list[Checkpoints] = []

    def build(**changes: object) -> Checkpoints:
        made.append(build_checkpoints(rank_context(job.uri, tmp_path / "local", attempt=2), **changes))
        return made[-1]

    yield build  # type: ignore[misc]
    for checkpoints in made:
        checkpoints.close()
