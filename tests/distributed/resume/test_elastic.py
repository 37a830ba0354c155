"""F37: a run goes on with other numbers of ranks. The same global batches, and weights that differ by no more than the order of sums."""

import pytest

from stagecoach.checkpoints import latest, verify
from stagecoach.checkpoints.diff import Side, differences
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import ChaosRun, Kill, Story

pytestmark = pytest.mark.timeout(900)  # four starts of a job: 40 s on two quiet cores
WORLDS = (4, 2, 3, 1)
STOPS = [Kill(phase="data_wait", way="term20", step=step) for step in (10, 20, 30)]


@pytest.fixture(scope="module")
def elastic(short_plan: StagePlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, JobFolder]:
    run = ChaosRun(tmp_path_factory.mktemp("elastic"), short_plan, STOPS, ranks=WORLDS)
    return run.run(), run.job.job


def test_each_world_takes_up_what_the_one_before_it_left(elastic: tuple[Story, JobFolder]) -> None:
    story, job = elastic
    starts = [job.attempt_start(number) for number in job.attempt_numbers()]
    ends = [job.attempt_end(number) for number in job.attempt_numbers()]
    assert [start.world_size for start in starts if start] == list(WORLDS)
    assert [end.kind for end in ends if end] == ["stopped", "stopped", "stopped", "done"]
    assert [end.steps_lost for end in ends if end] == [0, 0, 0, 0]  # each saved its last step, or a step would be taken by two worlds
    assert [start.resumed_from_step for start in starts if start][1:] == [end.committed_step for end in ends if end][:-1]
    assert story.problems == []


def test_every_global_batch_is_the_same(elastic: tuple[Story, JobFolder], short_whole: Story) -> None:
    assert elastic[0].ids == short_whole.ids
    assert (elastic[0].tokens, elastic[0].images) == (short_whole.tokens, short_whole.images)


def test_the_loss_follows_that_of_two_ranks(elastic: tuple[Story, JobFolder], short_whole: Story) -> None:
    """For 50 steps: tests/distributed/train/test_ranks.py, and benchmarks/elastic.py."""
    apart = {step: abs(loss - short_whole.losses[step]) / short_whole.losses[step] for step, loss in elastic[0].losses.items()}
    assert apart.keys() == short_whole.losses.keys()
    assert max(apart[step] for step in range(1, 11)) < 1e-5
    assert max(apart.values()) < 1e-3


def test_the_state_is_that_of_two_ranks_but_for_the_order_of_sums(
    elastic: tuple[Story, JobFolder], short_untouched: tuple[Story, str]
) -> None:
    one, other = (side(job) for job in (elastic[1], JobFolder.open(short_untouched[1])))
    apart = {f"{each.part} {each.name}": each.max_abs for each in differences(one, other)}
    assert all(value is not None and value < 5e-3 for value in apart.values()), apart


def side(job: JobFolder) -> Side:
    """The last checkpoint."""
    ref = latest(job)
    assert ref is not None
    return Side(job=job, ref=ref, manifest=verify(job, ref).manifest)
