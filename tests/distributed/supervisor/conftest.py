"""Jobs with real supervisors; a test that fails leaves no process behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.testing.supervised import SupervisedJob

StartJob = Callable[..., SupervisedJob]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[StartJob]:
    """make_job(settings, ranks=2, nodes=1, grace_s=10). Afterwards no process, no shared memory and no scratch folder may be left."""
    jobs: list[SupervisedJob] = []

    def make(settings: dict[str, Any], **options: Any) -> SupervisedJob:
        jobs.append(SupervisedJob(tmp_path / f"job-{len(jobs)}", settings, **options))
        return jobs[-1]

    yield make
    left = [name for job in jobs for name in job.leftovers()]
    for job in jobs:
        job.close()
    assert left == []
