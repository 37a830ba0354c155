"""A small stage, and what it comes to when nobody touches it."""

from pathlib import Path

import pytest

from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import ChaosRun, Story
from stagecoach.testing.training import DATASETS, toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus

STEPS = 87  # nine kills in mid-run, nine steps apart


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=DATASETS)
    return f"file://{folder}"


@pytest.fixture(scope="session")
def plan(corpus: str) -> StagePlan:
    return toy_stage(corpus, [f"duration.steps={STEPS}"])


@pytest.fixture(scope="session")
def untouched(plan: StagePlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, str]:
    """Two ranks from the first step to the last: what it came to, and the job's URI."""
    run = ChaosRun(tmp_path_factory.mktemp("untouched"), plan, ())
    story = run.run()
    assert story.problems == []
    assert set(story.losses) == set(story.ids) == set(range(1, STEPS + 1))
    assert story.losses[STEPS] < story.losses[1] - 0.5  # it learned something, or equal curves would prove little
    return story, run.job.uri


@pytest.fixture(scope="session")
def whole(untouched: tuple[Story, str]) -> Story:
    return untouched[0]
