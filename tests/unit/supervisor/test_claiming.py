"""SIGTERM while an attempt is claimed in a slow bucket: either there is no attempt, or the supervisor knows of it."""

import asyncio
import shutil
import threading
import time
import uuid
from dataclasses import dataclass

import pytest

from stagecoach.contract.job import AttemptStart
from stagecoach.contract.ledger import JobFolder
from stagecoach.storage import open_store
from stagecoach.supervisor.main import lead
from stagecoach.supervisor.node import build_node
from stagecoach.supervisor.settings import read_settings
from stagecoach.supervisor.waiting import StopRequested
from stagecoach.testing.builders import launch_spec

SLOW_S = 0.4
BEGUN = threading.Event()  # the claim is in the bucket now


@dataclass(frozen=True)
class SlowJob(JobFolder):
    """A bucket that takes its time."""

    def claim_attempt(self, start: AttemptStart) -> bool:
        BEGUN.set()
        time.sleep(SLOW_S)
        return super().claim_attempt(start)


async def claim(job: JobFolder, *, stop_first: bool) -> int:
    settings = read_settings({"STAGECOACH_JOB_URI": job.uri, "STAGECOACH_SUBMISSION": "1", "STAGECOACH_NODE_INDEX": "0"})
    node = build_node(settings, job, launch_spec(job_uri=job.uri))
    node.port = 1234
    node.stopped_at.append(time.monotonic())
    BEGUN.clear()
    try:
        if stop_first:
            node.stop.set()
        leading = asyncio.create_task(lead(node))
        if not stop_first:
            await asyncio.to_thread(BEGUN.wait, 30)
            node.stop.set()
        start, _ = await leading
        return start.attempt
    finally:
        shutil.rmtree(node.folder)


@pytest.fixture
def job() -> JobFolder:
    return SlowJob(open_store(f"memory://{uuid.uuid4().hex}/job"))


def test_once_asked_to_stop_no_attempt_is_claimed(job: JobFolder) -> None:
    with pytest.raises(StopRequested):
        asyncio.run(claim(job, stop_first=True))
    time.sleep(SLOW_S + 0.1)
    assert job.attempt_numbers() == []


def test_an_attempt_that_is_being_claimed_is_waited_for(job: JobFolder) -> None:
    assert asyncio.run(claim(job, stop_first=False)) == 1
    assert job.attempt_numbers() == [1]
