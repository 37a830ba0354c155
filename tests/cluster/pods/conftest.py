"""Pods that really run: nodes on this machine, and a training image that is loaded into them, named by STAGECOACH_TEST_IMAGE.

One corpus and one run that nobody touches serve all tests: whatever happens to a stage, it must end with the weights of that run.
"""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stagecoach.testing.cluster_world import make_bucket
from stagecoach.testing.host import COMMAND
from stagecoach.testing.pod_world import STAGECOACH, PodWorld, StageRun

IMAGE = os.environ.get("STAGECOACH_TEST_IMAGE", "")
STEPS = 20
GRACE_S = 20
if not IMAGE:
    collect_ignore_glob = ["test_*.py"]  # these are asked for by naming an image, since building one takes minutes

StartStage = Callable[..., StageRun]


@pytest.fixture
def pods(request: pytest.FixtureRequest) -> Iterator[PodWorld]:
    """By its parameter with another grace period (seconds) than tests usually have."""
    there = PodWorld(IMAGE, grace_s=getattr(request, "param", GRACE_S))
    yield there
    there.close()


@pytest.fixture(scope="session")
def corpus() -> str:
    """A made corpus in a bucket of its own."""
    uri = f"s3://{make_bucket(f'corpus-{secrets.token_hex(4)}')}/corpus"
    subprocess.run([STAGECOACH, "data", "make", uri, "--profile", "tiny"], check=True, capture_output=True, timeout=300)
    return uri


@pytest.fixture(scope="session")
def untouched(corpus: str) -> Iterator[dict[str, Any]]:
    """stage.json of the stage as it ends when nothing happens to it."""
    world = PodWorld(IMAGE)
    run = StageRun(world, "untouched", corpus, steps=STEPS)
    try:
        yield run.manifest()
    finally:
        run.close()
        world.close()


@pytest.fixture
def start_stage(pods: PodWorld, corpus: str) -> Iterator[StartStage]:
    """Starts the stage that `untouched` is of, under a run id. Its first attempt is held before its end (`StageRun.release`)."""
    started: list[StageRun] = []

    def start(run_id: str, **changes: Any) -> StageRun:
        started.append(StageRun(pods, run_id, corpus, **{"steps": STEPS, "holds": (1,), **changes}))
        return started[-1]

    yield start
    for run in started:
        run.close()


@pytest.fixture
def faults() -> None:
    """Parts of the cluster can be made to fail."""
    if not os.environ.get(COMMAND):
        pytest.skip(f"needs a cluster whose parts can be made to fail: {COMMAND} names no command (tests/cluster/run sets it)")
