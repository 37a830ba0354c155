"""Faults at a phase of training, ordered from outside: what the fault tests use to hit one line of the trainer or of a saving process.

`STAGECOACH_TEST_FAULTS` is a JSON list of `PhaseFault`s. Unset, as in production, `reached` costs one comparison.
"""

import ctypes
import glob
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

VARIABLE = "STAGECOACH_TEST_FAULTS"
PHASES = (
    "rendezvous", "restore", "data_wait", "forward", "all_reduce", "optimizer_step", "evaluation",
    "staging", "upload", "manifest", "commit", "gc",
    "load",  # in the thread that loads data: the step's batches are there, and nobody has them yet
)  # fmt: skip
FOR_EVER_S = 10_000
HOLD_POLL_S = 0.05
SO_ATTACH_FILTER = 26  # socket(7); Python has no name for it

Action = Literal[
    "sigkill", "sigkill_parent", "sigkill_ranks", "sigkill_supervisor", "sigterm_supervisor",  # done by `reached`
    "sigterm", "sigstop", "raise", "exit", "sleep", "hold", "partition",
    "nan", "inf", "spike", "flip",  # done by the trainer, which asks `ordered`
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhaseFault:
    """What happens where. `rank` None: on every rank; `step` None: at every step; `attempt` None: in every attempt.

    A fault with a `mark` is committed once in all attempts, by the process that makes that file (JSON: t, phase, step, attempt, rank); one
    with `after` not before that file is there. So faults are strung together without knowing how many attempts each will cost. A "hold"
    ends once the file `until` is there: a test that makes a fault from outside need not be quicker than the job.
    """

    at: str
    action: Action
    step: int | None = None
    rank: int | None = 0
    attempt: int | None = 1
    value: float = 0.0  # seconds of "sleep", or by which a signal is late; the code of "exit", the factor of "spike"
    mark: str | None = None
    after: str | None = None
    until: str | None = None  # of "hold"


def reached(phase: str, step: int) -> None:
    """Says that this process enters `phase` of `step` (the step being taken, from 1; 0 before the first). Commits what is due here."""
    if VARIABLE not in os.environ:
        return
    for fault in _due(phase, step):
        if (act := _ACTIONS.get(fault.action)) and _is_ours(fault, step):
            act(fault)


def ordered(action: Action, phase: str, step: int) -> PhaseFault | None:
    """The fault of this kind that is due here, for what only the trainer can do to itself (nan, inf, spike, flip)."""
    if VARIABLE not in os.environ:
        return None
    return next((fault for fault in _due(phase, step) if fault.action == action and _is_ours(fault, step)), None)


def _due(phase: str, step: int) -> list[PhaseFault]:
    here = {"rank": _number("RANK"), "attempt": _number("STAGECOACH_ATTEMPT"), "step": step}
    return [
        fault
        for fault in _read(os.environ[VARIABLE])
        if fault.at == phase
        and all(getattr(fault, name) in (None, value) for name, value in here.items())
        and (fault.after is None or os.path.exists(fault.after))
    ]


def _is_ours(fault: PhaseFault, step: int) -> bool:
    """False when another process, or an earlier attempt, commits it."""
    if fault.mark is None:
        return True
    late_s = fault.value if fault.action.startswith("sig") else 0.0
    told = {"t": time.time() + late_s, "phase": fault.at, "step": step, "attempt": _number("STAGECOACH_ATTEMPT"), "rank": _number("RANK")}
    whole = f"{fault.mark}.{os.getpid()}"
    with open(whole, "x") as file:
        json.dump(told, file)
    try:
        os.link(whole, fault.mark)  # with its content, or not at all
    except FileExistsError:
        return False
    finally:
        os.unlink(whole)
    return True


@cache
def _read(text: str) -> tuple[PhaseFault, ...]:
    """Raises ValueError for a phase or action that does not exist: a fault that is never committed would let its test pass; and for a hold
    that nothing would end."""
    faults = tuple(PhaseFault(**fault) for fault in json.loads(text))
    for fault in faults:
        if fault.at not in PHASES or fault.action not in Action.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{VARIABLE}: no such phase or action: {fault}")
        if (fault.action == "hold") != (fault.until is not None):
            raise ValueError(f"{VARIABLE}: a hold needs `until`, and nothing else has one: {fault}")
    return faults


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _raise(fault: PhaseFault) -> None:
    raise ValueError(f"the test says: fail at {fault.at}")


def _signal(number: signal.Signals, processes: Callable[[], list[int]]) -> Callable[[PhaseFault], None]:
    def send() -> None:
        for process in processes():
            os.kill(process, number)

    def fault(order: PhaseFault) -> None:
        if not order.value:
            return send()
        late = threading.Timer(order.value, send)
        late.daemon = True
        return late.start()

    return fault


def _ranks() -> list[int]:
    """The ranks of this node; the caller's own comes last, for it ends what it sends."""
    agent = os.environ["STAGECOACH_AGENT_PID"]
    children = {int(word) for path in glob.glob(f"/proc/{agent}/task/*/children") for word in Path(path).read_text().split()}
    own = children & {os.getpid(), os.getppid()}
    return [*sorted(children - own), *own]


def _supervisor() -> list[int]:
    return [int(os.environ["STAGECOACH_SUPERVISOR_PID"])]


def _partition(_fault: PhaseFault) -> None:
    """From now on every packet that the network brings to this process's connections is dropped: the others hear no answer and no end."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # classic BPF: return 0, of every packet
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _hold(fault: PhaseFault) -> None:
    while fault.until is not None and not os.path.exists(fault.until):
        time.sleep(HOLD_POLL_S)


def _exit(fault: PhaseFault) -> None:
    sys.stderr.flush()
    os._exit(int(fault.value))


_ACTIONS: dict[str, Callable[[PhaseFault], None]] = {
    "sigkill": _signal(signal.SIGKILL, lambda: [os.getpid()]),
    "sigkill_parent": _signal(signal.SIGKILL, lambda: [os.getppid()]),
    "sigkill_ranks": _signal(signal.SIGKILL, _ranks),
    "sigkill_supervisor": _signal(signal.SIGKILL, _supervisor),
    "sigterm_supervisor": _signal(signal.SIGTERM, _supervisor),
    "sigterm": _signal(signal.SIGTERM, lambda: [os.getpid()]),
    "sigstop": _signal(signal.SIGSTOP, lambda: [os.getpid()]),
    "raise": _raise,
    "partition": _partition,
    "exit": _exit,
    "hold": _hold,
    "sleep": lambda fault: time.sleep(fault.value or FOR_EVER_S),
}
