"""Jobs with real supervisors; a test that fails leaves no process behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.testing.supervised import SupervisedJob, shared_memory

StartJob = Callable[..., SupervisedJob]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[StartJob]:
    """make_job(settings, ranks=2, nodes=1, grace_s=10). Afterwards no process, no shared memory and no scratch folder may be left."""
    jobs: list[SupervisedJob] = []
    shared_before = shared_memory()

    def make(settings: dict[str, Any], **options: Any) -> SupervisedJob:
        jobs.append(SupervisedJob(tmp_path / f"job-{len(jobs)}", settings, **options))
        return jobs[-1]

    yield make
    left = {job.uri: job.survivors() for job in jobs}
    scratch = {job.uri: [path.name for path in job.scratch.iterdir()] for job in jobs}
    for job in jobs:
        job.close()
    assert left == {job.uri: [] for job in jobs}
    assert shared_memory() - shared_before == set()
    assert scratch == {job.uri: [] for job in jobs}
