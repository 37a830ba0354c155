"""Drawing kills, faults that are strung together, and the comparison that all figures rest on: it must be able to fail."""

import itertools
import json
import os
import random
from pathlib import Path

import pytest

from stagecoach.testing.chaos import IN_PLACE, PHASES, STARTING, Kill, Story, Struck, differences, draw_kills, measure, read_trace
from stagecoach_workloads.testing.phases import VARIABLE, ordered, reached


@pytest.mark.parametrize("seed", range(20))
def test_drawn_kills_can_happen_in_their_order(seed: int) -> None:
    pairs = [(phase, "rank") for phase in PHASES] + [("commit", "saver"), ("forward", "term1"), ("upload", "supervisor")]
    drawn = draw_kills(random.Random(seed), pairs, ranks=2)
    assert sorted((kill.phase, kill.way) for kill in drawn) == sorted(pairs)
    steps = [kill.step for kill in drawn if kill.phase not in STARTING]
    assert all(later - step >= 7 for step, later in itertools.pairwise(steps))  # two saves were begun, so one was committed
    for before, kill in zip([None, *drawn], drawn, strict=False):
        if kill.phase in STARTING:
            assert before is not None
            assert before.phase not in STARTING
        if kill.phase == "restart":
            assert before is not None
            assert before.way in IN_PLACE
        assert kill.rank == 0 or kill.phase not in ("manifest", "commit", "gc")


def test_a_marked_fault_is_committed_once_and_not_before_the_one_it_follows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = str(tmp_path / "1"), str(tmp_path / "2")
    faults = [
        {"at": "forward", "action": "raise", "attempt": None, "mark": second, "after": first},
        {"at": "forward", "action": "nan", "attempt": None, "mark": first},
    ]
    monkeypatch.setenv(VARIABLE, json.dumps(faults))
    monkeypatch.setenv("RANK", "0")
    reached("forward", 3)
    assert os.listdir(tmp_path) == []
    assert ordered("nan", "forward", 3) is not None
    assert ordered("nan", "forward", 4) is None
    with pytest.raises(ValueError, match="fail at forward"):
        reached("forward", 5)
    reached("forward", 6)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    assert json.loads((tmp_path / "2").read_text())["step"] == 5


def trace(folder: Path, attempt: int, *steps: tuple[float, int, float]) -> None:
    """(time, step, loss)."""
    lines = [json.dumps({"t": at, "name": "step", "value": {"loss": loss}, "step": step}) for at, step, loss in steps]
    (folder / f"attempt-{attempt}-rank-0.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_step_that_two_attempts_took_differently_is_told(tmp_path: Path) -> None:
    trace(tmp_path, 1, (1.0, 1, 3.0), (2.0, 2, 2.5))
    trace(tmp_path, 2, (9.0, 2, 2.5000001), (10.0, 3, 2.0))
    story = Story()
    assert read_trace(tmp_path, story) == {1: 1.0, 2: 9.0}
    assert story.losses == {1: 3.0, 2: 2.5, 3: 2.0}
    assert story.problems == ["loss of step 2 was 2.5, and 2.5000001 in attempt 2"]


def test_time_to_work_again_is_not_stated_where_the_next_kill_came_first() -> None:
    struck = [Struck(Kill(phase="forward", way="rank"), at=at, attempt=attempt) for at, attempt in ((10.0, 1), (12.0, 2), (20.0, 3))]
    measure(struck, {1: 1.0, 3: 15.0, 4: 24.0})
    assert [each.to_new_step_s for each in struck] == [None, 3.0, 4.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digest": "b"}, "digest is b and was a"),
        ({"losses": {1: 2.0, 2: 1.5}}, "losses of 1 steps differ, first of step 2: 1.5, not 1.0"),
        ({"losses": {1: 2.0}}, "first of step 2: None, not 1.0"),
        ({"ids": {1: "x", 2: "z"}}, "ids of 1 steps differ"),
        ({"tokens": 4}, "tokens is 4"),
        ({"problems": ["a survivor"]}, "a survivor"),
    ],
)
def test_whatever_differs_is_told(change: dict[str, object], says: str) -> None:
    whole = {"digest": "a", "losses": {1: 2.0, 2: 1.0}, "ids": {1: "x", 2: "y"}, "tokens": 5}
    assert differences(Story(**whole), Story(**whole)) == []  # type: ignore[arg-type]
    assert says in "; ".join(differences(Story(**{**whole, **change}), Story(**whole)))  # type: ignore[arg-type]
