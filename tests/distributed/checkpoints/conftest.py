"""A job, and ranks of it that save in this process with a real saving process beside them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.testing.checkpointing import build_checkpoints, rank_context
from stagecoach_workloads.testing.phases import VARIABLE

Build = Callable[..., Checkpoints]
JOB = "runs/r/stages/00-pretrain"


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder.open(f"file://{tmp_path}/root/{JOB}")


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """build(job, attempt=, rank=, world_size=, faults=, **changes): a rank of the job; ended with the test."""
    made: list[Checkpoints] = []

    def build(
        job: JobFolder, *, attempt: int = 1, rank: int = 0, world_size: int = 1, faults: object = None, **changes: object
    ) -> Checkpoints:
        context = rank_context(job.uri, tmp_path / f"local-{rank}", rank=rank, world_size=world_size, attempt=attempt)
        os.environ.update({"RANK": str(rank), "STAGECOACH_ATTEMPT": str(attempt)})
        if faults is not None:
            os.environ[VARIABLE] = json.dumps(faults)
        made.append(build_checkpoints(context, **changes))
        made[-1]._start_saver()  # with this environment
        os.environ.pop(VARIABLE, None)
        return made[-1]

    yield build
    for checkpoints in made:
        checkpoints.close()
    for name in ("RANK", "STAGECOACH_ATTEMPT"):
        os.environ.pop(name, None)
