"""Waiting for a save that is slow is no hang: what the watchdog sees of it."""

import threading
from collections.abc import Callable

import pytest

from stagecoach.supervisor.watchdog import Watchdog
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.messages import Report
from stagecoach_workloads.testing.checkpointing import whole_state

Build = Callable[..., Checkpoints]
HANG_S = 10.0


@pytest.mark.parametrize("wait", ["save", "wait"])
def test_a_job_whose_store_is_slow_is_not_taken_for_one_that_hangs(build: Build, monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    """The last step was told, the next save is due, and the one before it is still on its way: every beat counts as a sign of life, a
    minute apart on the watchdog's clock."""
    checkpoints = build()
    context = checkpoints._context
    dog = Watchdog([0], now=0.0, hang_s=HANG_S, first_step_s=600.0)
    context.heartbeat(step=1, phase="train")
    dog.see({0: context.last_beat}, 1.0)
    context.heartbeat(step=2, phase="train")
    dog.see({0: context.last_beat}, 2.0)
    assert dog.silence(2.0 + HANG_S + 1, {0}) is not None  # it would be
    checkpoints._in_flight = 20
    clock = [2.0]
    heartbeat = context.heartbeat

    def seen(**beat: object) -> None:
        heartbeat(**beat)  # type: ignore[arg-type]
        clock[0] += 0.9 * HANG_S
        assert dog.silence(clock[0], {0}) is None
        dog.see({0: context.last_beat}, clock[0])
        if clock[0] > 5 * HANG_S and checkpoints._in_flight == 20:  # then it is committed
            threading.Thread(target=checkpoints._take, args=(Report(kind="committed", step=20),)).start()

    monkeypatch.setattr(context, "heartbeat", seen)
    if wait == "save":
        checkpoints.save(30, whole_state(30))
        assert checkpoints.wait(120)
    else:
        checkpoints.wait()
    assert clock[0] > 5 * HANG_S
    assert context.last_beat.step == 2  # nothing pretended to be a step
