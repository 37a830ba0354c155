"""What tests do to a run in this process."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from stagecoach_workloads.train.loop import Run


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Run], object]) -> None:
    """Does something when so many steps are behind."""
    original = Run.wait_for_data

    def wait_for_data(run: Run) -> Any:
        if run.state.step == step:
            act(run)
        return original(run)

    monkeypatch.setattr(Run, "wait_for_data", wait_for_data)


def order(monkeypatch: pytest.MonkeyPatch, *faults: dict[str, Any]) -> None:
    """Faults at phases (`stagecoach_workloads.testing.phases`)."""
    monkeypatch.setenv("STAGECOACH_TEST_FAULTS", json.dumps(faults))
