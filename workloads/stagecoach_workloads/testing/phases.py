"""Faults at a phase of training, ordered from outside: what the fault tests use to hit one line of the trainer or of a saving process.

`STAGECOACH_TEST_FAULTS` is a JSON list of `PhaseFault`s. Unset, as in production, `reached` costs one comparison.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

VARIABLE = "STAGECOACH_TEST_FAULTS"
PHASES = (
    "rendezvous", "restore", "data_wait", "forward", "all_reduce", "optimizer_step", "evaluation",
    "staging", "upload", "manifest", "commit", "gc",
)  # fmt: skip
FOR_EVER_S = 10_000

Action = Literal[
    "sigkill", "sigkill_parent", "sigterm", "sigstop", "raise", "exit", "sleep",  # done by `reached`
    "nan", "inf", "spike", "flip",  # done by the trainer, which asks `ordered`
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhaseFault:
    """What happens where. `rank` None: on every rank; `step` None: at every step; `attempt` None: in every attempt."""

    at: str
    action: Action
    step: int | None = None
    rank: int | None = 0
    attempt: int | None = 1
    value: float = 0.0  # seconds of "sleep", the code of "exit", the factor of "spike"


def reached(phase: str, step: int) -> None:
    """Says that this process enters `phase` of `step` (the step being taken, from 1; 0 before the first). Commits what is due here."""
    if VARIABLE not in os.environ:
        return
    for fault in _due(phase, step):
        if act := _ACTIONS.get(fault.action):
            act(fault)


def ordered(action: Action, phase: str, step: int) -> PhaseFault | None:
    """The fault of this kind that is due here, for what only the trainer can do to itself (nan, inf, spike, flip)."""
    if VARIABLE not in os.environ:
        return None
    return next((fault for fault in _due(phase, step) if fault.action == action), None)


def _due(phase: str, step: int) -> list[PhaseFault]:
    here = {"rank": _number("RANK"), "attempt": _number("STAGECOACH_ATTEMPT"), "step": step}
    return [
        fault
        for fault in _read(os.environ[VARIABLE])
        if fault.at == phase and all(getattr(fault, name) in (None, value) for name, value in here.items())
    ]


@cache
def _read(text: str) -> tuple[PhaseFault, ...]:
    """Raises ValueError for a phase or action that does not exist: a fault that is never committed would let its test pass."""
    faults = tuple(PhaseFault(**fault) for fault in json.loads(text))
    for fault in faults:
        if fault.at not in PHASES or fault.action not in Action.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{VARIABLE}: no such phase or action: {fault}")
    return faults


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _raise(fault: PhaseFault) -> None:
    raise ValueError(f"the test says: fail at {fault.at}")


def _signal(number: signal.Signals, process: Callable[[], int] = os.getpid) -> Callable[[PhaseFault], None]:
    return lambda _fault: os.kill(process(), number)


def _exit(fault: PhaseFault) -> None:
    sys.stderr.flush()
    os._exit(int(fault.value))


_ACTIONS: dict[str, Callable[[PhaseFault], None]] = {
    "sigkill": _signal(signal.SIGKILL),
    "sigkill_parent": _signal(signal.SIGKILL, os.getppid),
    "sigterm": _signal(signal.SIGTERM),
    "sigstop": _signal(signal.SIGSTOP),
    "raise": _raise,
    "exit": _exit,
    "sleep": lambda fault: time.sleep(fault.value or FOR_EVER_S),
}
