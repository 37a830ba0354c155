"""Exact resume: whatever is killed, wherever it is, the run ends bit for bit as one that nobody touched. Many more: benchmarks/chaos.py."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import PHASES, ChaosRun, Story, differences, draw_kills
from stagecoach.testing.s3_server import bucket, s3_server

pytestmark = pytest.mark.timeout(900)  # every kill costs a restart: 3 to 8 s on two quiet cores
WAY_OF = {
    "rendezvous": "ranks", "restore": "rank", "restart": "rank", "data_wait": "rank", "forward": "supervisor", "all_reduce": "ranks",
    "optimizer_step": "rank", "staging": "rank", "upload": "saver", "manifest": "rank", "commit": "saver", "gc": "ranks",
}  # fmt: skip


def killed(folder: Path, plan: StagePlan, kills: Sequence[tuple[str, str]], **options: Any) -> Story:
    """The story of a job of two ranks under these kills (phase, way)."""
    return ChaosRun(folder, plan, draw_kills(random.Random(6), kills, ranks=2), **options).run()


def check(story: Story, whole: Story, *, kills: int) -> None:
    assert differences(story, whole) == []
    assert len(story.struck) == kills
    assert story.attempts > kills // 2
    assert all(struck.verified_step is not None for struck in story.struck if struck.kill.step > 9)


def test_killed_at_each_phase_it_ends_as_if_never_touched(tmp_path: Path, plan: StagePlan, whole: Story) -> None:
    assert set(WAY_OF) == set(PHASES)
    check(killed(tmp_path, plan, list(WAY_OF.items())), whole, kills=12)


def test_stopped_with_more_and_less_grace_it_ends_as_if_never_touched(tmp_path: Path, short_plan: StagePlan, short_whole: Story) -> None:
    """F15, F16, F17: what the grace allows is saved, and what it does not is taken again."""
    kills = [("data_wait", "term5"), ("forward", "term0"), ("upload", "term1"), ("restore", "term1"), ("optimizer_step", "term20")]
    story = killed(tmp_path, short_plan, kills)
    check(story, short_whole, kills=5)
    assert story.steps_lost["term20"] == [0]  # five seconds are enough too, on a machine that does nothing else: benchmarks/chaos.py tells


def test_on_two_nodes_it_ends_as_if_never_touched(tmp_path: Path, short_plan: StagePlan, short_whole: Story) -> None:
    """Two supervisors with a rank each: the same bits as one with two."""
    check(killed(tmp_path, short_plan, [("optimizer_step", "rank"), ("commit", "supervisor")], ranks=1, nodes=2), short_whole, kills=2)


def test_on_s3_it_ends_as_if_never_touched(
    tmp_path: Path, short_plan: StagePlan, short_whole: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server, bucket(server) as name:
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        story = killed(tmp_path, short_plan, [("upload", "saver"), ("commit", "ranks"), ("restart", "supervisor")], uri=f"s3://{name}/job")
        check(story, short_whole, kills=3)
