"""Silence, on a clock that tests turn."""

from stagecoach.contract.local import Heartbeat
from stagecoach.supervisor.watchdog import Watchdog

BOTH = {0, 1}


def beats(counter: int, step: int, phase: str = "train") -> dict[int, Heartbeat]:
    return {rank: Heartbeat(counter=counter, step=step, phase=phase) for rank in BOTH}


def test_before_the_first_step_patience_is_long_and_after_it_a_few_steps() -> None:
    dog = Watchdog([0, 1], now=0.0, hang_s=None, first_step_s=600.0)
    dog.see(beats(1, 0, "compile"), 1.0)
    assert dog.silence(600.0, BOTH) is None
    assert dog.silence(602.0, BOTH).ranks == (0, 1)
    for step in range(1, 10):
        dog.see(beats(1 + step, step), 600.0 + 30.0 * step)
    assert dog.deadline_s == 150.0  # 5 x the median step of 30 s
    assert dog.silence(870.0 + 149.0, BOTH) is None
    assert dog.silence(870.0 + 151.0, BOTH).deadline_s == 150.0


def test_fast_steps_still_have_a_minute() -> None:
    dog = Watchdog([0, 1], now=0.0, hang_s=None, first_step_s=600.0)
    for step in range(20):
        dog.see(beats(1 + step, step), 0.1 * step)
    assert dog.deadline_s == 60.0


def test_the_rank_that_is_silent_is_named_and_one_that_ended_is_not() -> None:
    dog = Watchdog([0, 1], now=0.0, hang_s=10.0, first_step_s=600.0)
    dog.see(beats(1, 0), 0.0)
    dog.see(beats(2, 1), 1.0)
    dog.see({0: Heartbeat(counter=3, step=2, phase="train")}, 9.0)
    assert dog.silence(12.0, BOTH).ranks == (1,)
    assert dog.silence(12.0, {0}) is None


def test_a_livelock_that_beats_without_a_step_is_silence_in_training_and_work_in_other_phases() -> None:
    for phase, expected in (("train", (0, 1)), ("evaluation", None)):
        dog = Watchdog([0, 1], now=0.0, hang_s=10.0, first_step_s=600.0)
        dog.see(beats(1, 0), 0.0)
        dog.see(beats(2, 1), 1.0)
        for second in range(2, 30):
            dog.see(beats(1 + second, 1, phase), float(second))
        silence = dog.silence(29.0, BOTH)
        assert (silence and silence.ranks) == expected


def test_steps_too_quick_to_be_seen_one_by_one_still_count() -> None:
    dog = Watchdog([0, 1], now=0.0, hang_s=10.0, first_step_s=600.0, resumed_step=30)
    dog.see(beats(1, 30, "restore"), 1.0)
    assert dog.deadline_s == 600.0
    quick = Watchdog([0, 1], now=0.0, hang_s=10.0, first_step_s=600.0, resumed_step=30)
    quick.see(beats(4, 33), 1.0)
    assert quick.deadline_s == 10.0
    assert quick.silence(12.0, BOTH).ranks == (0, 1)


def test_the_first_evaluation_may_take_as_long_as_a_first_step_and_later_ones_may_not() -> None:
    """What is compiled is compiled again where no gradients are taken: minutes, in which the main thread cannot beat."""
    dog = Watchdog([0, 1], now=0.0, hang_s=None, first_step_s=600.0)
    for step in range(20):
        dog.see(beats(1 + step, step), float(step))
    dog.see(beats(21, 19, "evaluation"), 20.0)
    assert dog.silence(20.0 + 599.0, BOTH) is None
    assert dog.silence(20.0 + 601.0, BOTH).deadline_s == 600.0
    dog.see(beats(22, 19, "evaluation"), 200.0)  # of a group with another shape
    assert dog.silence(200.0 + 599.0, BOTH) is None
    dog.see(beats(24, 19, "evaluation"), 300.0)
    assert dog.silence(300.0 + 61.0, BOTH).deadline_s == 60.0
    dog.see(beats(25, 20), 301.0)
    assert dog.silence(301.0 + 61.0, BOTH).phase == "train"


def test_a_short_evaluation_was_the_first_one_too() -> None:
    dog = Watchdog([0, 1], now=0.0, hang_s=10.0, first_step_s=600.0)
    for counter, (step, phase) in enumerate([(0, "train"), (1, "train"), (1, "evaluation"), (2, "train"), (2, "evaluation")], start=1):
        dog.see(beats(counter, step, phase), float(counter))
    assert dog.silence(5.0 + 11.0, BOTH).phase == "evaluation"
