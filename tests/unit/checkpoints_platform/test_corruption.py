"""Every object of a checkpoint, damaged in every way, is named, and the one before is chosen (F27-F29)."""

from collections.abc import Iterator

import pytest
from loguru import logger

from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.corruption import check_untouched, count, judge, make_scene, trials


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Each quarantine is told; here there are many."""
    logger.disable("stagecoach.checkpoints")
    yield
    logger.enable("stagecoach.checkpoints")


def test_no_damage_is_silent(job_on_disk: JobFolder) -> None:
    scene = make_scene(job_on_disk)
    tried = list(trials(3))
    wrong = [says for trial in tried for says in judge(scene, trial)]
    assert wrong == []
    check_untouched(scene)
    assert len(tried) == 117
    assert min(count(tried).values()) >= 15
