"""A small stage, and what it comes to when nobody touches it."""

from pathlib import Path

import pytest

from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import ChaosRun, Story
from stagecoach.testing.training import DATASETS, toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus

STEPS = 87  # nine kills in mid-run, nine steps apart
FEW_STEPS = 42  # four


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
    return run_untouched(tmp_path_factory.mktemp("untouched"), plan, STEPS)


def run_untouched(folder: Path, plan: StagePlan, steps: int) -> tuple[Story, str]:
    run = ChaosRun(folder, plan, ())
    story = run.run()
    assert story.problems == []
    assert set(story.losses) == set(story.ids) == set(range(1, steps + 1))
    assert story.losses[steps] < story.losses[1] - 0.5  # it learned something, or equal curves would prove little
    return story, run.job.uri


@pytest.fixture(scope="session")
def whole(untouched: tuple[Story, str]) -> Story:
    return untouched[0]


@pytest.fixture(scope="session")
def short_plan(corpus: str) -> StagePlan:
    """Where few kills are: on S3 every save is a second, and there is one every three steps."""
    return toy_stage(corpus, [f"duration.steps={FEW_STEPS}"])


@pytest.fixture(scope="session")
def short_untouched(short_plan: StagePlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, str]:
    return run_untouched(tmp_path_factory.mktemp("short"), short_plan, FEW_STEPS)


@pytest.fixture(scope="session")
def short_whole(short_untouched: tuple[Story, str]) -> Story:
    return short_untouched[0]
