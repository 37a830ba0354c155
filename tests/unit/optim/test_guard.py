"""What becomes of bad steps."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.errors import CheckpointError
from stagecoach_workloads.train.guard import Guard, GuardSettings

SMALL = GuardSettings(warm_up=10, history=8, most_skips=3, most_rewinds=2, forgive_after=40)


def trained(steps: int, *, loss: float = 2.0, norm: float = 0.5, settings: GuardSettings = SMALL) -> Guard:
    guard = Guard(max_grad_norm=1.0, settings=settings)
    assert [guard.decide(loss, norm) for _ in range(steps)] == ["take"] * steps
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (2.0, math.nan), (math.inf, 1.0), (2.0, math.inf), (-math.inf, 1.0)])
def test_what_is_not_finite_is_never_taken_not_even_at_the_first_step(loss: float, norm: float) -> None:
    guard = Guard(max_grad_norm=1.0, settings=SMALL)
    assert guard.decide(loss, norm) == "skip"
    assert "not finite" in guard.reason


def test_a_spike_after_the_warm_up_is_skipped_and_named() -> None:
    guard = trained(20)
    assert guard.decide(11.0, 0.5) == "skip"
    assert guard.reason == "loss=11 is over 5 times the usual 2"
    assert guard.decide(2.0, 6.0) == "skip"
    assert guard.reason == "grad_norm=6 is over 10 times the usual 0.5"
    assert guard.decide(2.1, 0.6) == "take"


def test_before_the_warm_up_is_over_large_losses_are_taken() -> None:
    assert trained(9).decide(100.0, 50.0) == "take"
    assert trained(10).decide(100.0, 50.0) == "skip"


@pytest.mark.parametrize(("usual", "now"), [((0.05, 0.5), (0.5, 0.5)), ((2.0, 0.01), (2.0, 0.9))])
def test_a_rise_that_harms_nothing_is_no_spike(usual: tuple[float, float], now: tuple[float, float]) -> None:
    """Ten times of nearly nothing; a norm that clipping would let pass."""
    assert trained(20, loss=usual[0], norm=usual[1]).decide(*now) == "take"


def test_skips_are_bounded_then_a_rewind_then_the_end() -> None:
    guard = trained(20)
    for rewinds in range(SMALL.most_rewinds):
        assert [guard.decide(math.nan, 1.0) for _ in range(3)] == ["skip"] * 3
        assert guard.decide(math.nan, 1.0) == "rewind"
        guard.rewound(from_step=24, to_step=20)
        assert guard.batches_skipped == 4 * (rewinds + 1)
    assert [guard.decide(math.nan, 1.0) for _ in range(4)] == ["skip"] * 3 + ["diverged"]
    assert "again after 2 rewinds" in guard.reason


def test_bad_steps_with_few_good_ones_between_lead_to_a_rewind_too() -> None:
    guard = trained(20)
    decisions = []
    while "rewind" not in decisions:
        decisions += [guard.decide(math.nan, 1.0), guard.decide(2.0, 0.5)]
        assert len(decisions) < 20


def test_rare_bad_steps_are_skipped_for_ever() -> None:
    guard = trained(20)
    for _ in range(200):
        assert guard.decide(math.nan, 1.0) == "skip"
        assert {guard.decide(2.0, 0.5) for _ in range(20)} == {"take"}


def test_rewinds_are_forgiven_after_a_long_calm() -> None:
    guard = trained(20)
    for _ in range(5 * SMALL.most_rewinds):
        while guard.decide(math.nan, 1.0) != "rewind":
            pass
        guard.rewound(from_step=30, to_step=25)
        assert {guard.decide(2.0, 0.5) for _ in range(SMALL.forgive_after)} == {"take"}


def test_a_loss_that_falls_fast_or_changes_its_level_slowly_raises_no_alarm() -> None:
    guard = Guard(max_grad_norm=1.0)
    noise = random.Random(0)
    for step in range(5000):
        loss = 2 + 9 * math.exp(-step / 200) + 0.3 * noise.random()
        norm = 0.3 + 20 * math.exp(-step / 50) + noise.expovariate(4)
        assert guard.decide(loss, norm) == "take", step


@given(
    numbers=st.lists(st.tuples(st.floats(), st.floats()), max_size=150),
    cut=st.integers(0, 150),
)
def test_a_guard_that_was_stored_decides_as_one_that_was_not(numbers: list[tuple[float, float]], cut: int) -> None:
    """Also two ranks' guards that see the same numbers."""
    whole, first = Guard(max_grad_norm=1.0, settings=SMALL), Guard(max_grad_norm=1.0, settings=SMALL)
    wanted = [whole.decide(*pair) for pair in numbers]
    found = [first.decide(*pair) for pair in numbers[:cut]]
    second = Guard(max_grad_norm=1.0, settings=SMALL)
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + [second.decide(*pair) for pair in numbers[cut:]] == wanted
    assert second.state() == whole.state()


def test_the_state_is_small() -> None:
    guard = Guard(max_grad_norm=1.0)
    noise = random.Random(0)
    for _ in range(200):
        guard.decide(2 + 1e-7 * noise.random(), 1e-7 * noise.random())
    assert len(json.dumps(guard.state())) < 2000


def test_another_formats_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="guard state has the format 'x'"):
        Guard().load_state({"format": "x"})
