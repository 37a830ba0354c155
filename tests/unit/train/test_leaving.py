"""A stop: what is saved in the grace that is left, and what a stop between two parts of an evaluation ends."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from stagecoach.recipes import recipe_function
from stagecoach_workloads.rank import Stopped
from stagecoach_workloads.train import saving as saving_module
from stagecoach_workloads.train.loop import Run
from stagecoach_workloads.train.saving import LEAVING_S, SAVE_MARGIN, Saving

PLAN = recipe_function("mm1_tiny")().stages[0]


class Grace:
    """Stands where a rank's context does: so many seconds are left."""

    def __init__(self, left_s: float) -> None:
        self.left_s, self.events = left_s, list[tuple[str, Any]]()

    def grace_left_s(self) -> float:
        return self.left_s

    def heartbeat(self, **_numbers: Any) -> None:
        pass

    def event(self, name: str, value: Any, *, step: int | None = None) -> None:
        self.events.append((name, value))


class Saves:
    """Stands where `Checkpoints` does: the last save took so long, and one may be in flight."""

    def __init__(self, usual_s: float | None, *, in_flight: int | None = None) -> None:
        self.usual_s, self.in_flight, self.committed_step = usual_s, in_flight, 3
        self.waited: list[float | None] = []

    def save(self, step: int, _state: Any) -> None:
        self.in_flight = step

    def wait(self, deadline_s: float | None = None) -> bool:
        self.waited.append(deadline_s)
        self.committed_step, self.in_flight = self.in_flight or self.committed_step, None
        return True

    def seconds_of_last_save(self) -> float | None:
        return self.usual_s


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A world of one rank, which agrees with itself; its replicas are looked at elsewhere."""
    monkeypatch.setattr(saving_module, "compare_replicas", lambda *_arguments, **_named: [])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saving(grace: Grace, saves: Saves) -> Saving:
    state = SimpleNamespace(
        step=7,
        tokens=0,
        images=0,
        data=None,
        model=None,
        optimizer=None,
        guard=SimpleNamespace(state=dict),
        to_checkpoint=lambda plan: None,
    )
    made = Saving(grace, PLAN, state, saves, SimpleNamespace(bucket=lambda name: nullcontext()), 10)  # type: ignore[arg-type]
    made.begun = {3}
    return made


@pytest.mark.parametrize(
    ("left_s", "usual_s", "saved"),
    [
        (20.0, 5.0, True),
        (5.0 * SAVE_MARGIN + LEAVING_S, 5.0, False),  # not a moment more than it needs
        (4.0, 5.0, False),
        (0.0, 0.1, False),
        (20.0, None, True),  # nothing was measured yet: it is tried, for as long as there is time
        (LEAVING_S, None, False),
    ],
)
def test_a_save_is_begun_when_the_time_that_the_last_one_took_fits_the_grace(left_s: float, usual_s: float | None, saved: bool) -> None:
    saves = Saves(usual_s)
    stopped = saving(Grace(left_s), saves).leave()
    assert isinstance(stopped, Stopped)
    assert stopped.committed_step == saves.committed_step == (7 if saved else 3)
    assert saves.waited == [max(0.0, left_s - LEAVING_S)] * (2 if saved else 1)  # never longer than there is time


def test_the_save_in_flight_is_finished_before_another_one_is_thought_of() -> None:
    saves = Saves(5.0, in_flight=6)
    assert saving(Grace(4.0), saves).leave().committed_step == 6


def test_a_step_that_has_a_folder_is_not_saved_again() -> None:
    saves = Saves(0.1)
    made = saving(Grace(20.0), saves)
    made.begun.add(7)
    assert made.leave().committed_step == 3
    assert len(saves.waited) == 1


@pytest.mark.parametrize("asked_to_stop", [False, True])
def test_samples_are_not_drawn_when_a_stop_came_after_validation(asked_to_stop: bool) -> None:
    """Completing them takes as many passes through the model as they get tokens."""
    shown: list[str] = []

    def draw(_model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        shown.append("samples")
        return {}, {}

    log = SimpleNamespace(
        bucket=lambda name: nullcontext(), validation=lambda step, losses: shown.append("validation"), samples=lambda *_: None
    )
    evaluation = replace(PLAN.evaluation, validate_every_steps=5)
    run = SimpleNamespace(
        validation=SimpleNamespace(run=lambda model, poll: {"loss": 2.0}),
        samples=SimpleNamespace(shown=draw),
        state=SimpleNamespace(step=5, model=None, metrics={}),
        plan=replace(PLAN, evaluation=evaluation),
        steps=10,
        log=log,
        enter=lambda phase: None,
        _should_leave_evaluation=lambda: asked_to_stop,
    )
    Run.validate_if_due(run)  # type: ignore[arg-type]
    assert shown == (["validation"] if asked_to_stop else ["validation", "samples"])
    assert run.state.metrics == {"validation/loss": 2.0}
