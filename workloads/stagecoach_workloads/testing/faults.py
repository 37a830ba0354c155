"""Faults that a scripted rank commits on itself, by name."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagecoach.errors import CheckpointError, ConfigError, DataError, Diverged
from stagecoach.storage.errors import StoreUnavailable
from stagecoach_workloads.rank import RankContext, Stopped

FOR_EVER_S = 10_000


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What to do, who does it, when. `step` -1: before the process group exists. `attempt` None: in every attempt."""

    kind: str
    rank: int = 0
    step: int = 0
    attempt: int | None = 1
    value: float = 0.0

    def is_due(self, context: RankContext, step: int) -> bool:
        return (self.rank, self.step) == (context.rank, step) and self.attempt in (None, context.attempt)


def read_faults(settings: Mapping[str, Any]) -> list[Fault]:
    """The job's settings["faults"]: a list of objects with Fault's fields."""
    return [Fault(**fault) for fault in settings.get("faults", ())]


class EarlyReturn(Exception):
    """Makes the scripted workload return as if it were done."""


def commit(faults: Iterable[Fault], context: RankContext, step: int) -> None:
    """Does what is due now."""
    for fault in faults:
        if fault.is_due(context, step):
            KINDS[fault.kind](context, fault)


def _raise(error: Callable[[], BaseException]) -> Callable[[RankContext, Fault], None]:
    def fault(_context: RankContext, _order: Fault) -> None:
        raise error()

    return fault


def _signal(number: signal.Signals) -> Callable[[RankContext, Fault], None]:
    return lambda _context, _order: os.kill(os.getpid(), number)


def _sleep(phase: str, *, polls: bool) -> Callable[[RankContext, Fault], None]:
    """A long phase. Only one that polls hears that it should stop."""

    def fault(context: RankContext, order: Fault) -> None:
        step, until = context.last_beat.step, time.monotonic() + (order.value or FOR_EVER_S)
        while time.monotonic() < until:
            context.heartbeat(step=step, phase=phase)
            if polls and context.stop_requested():
                raise Stopped(committed_step=int(context.last_beat.numbers.get("committed_step", 0)))
            time.sleep(0.05)

    return fault


def _hold_gil(_context: RankContext, _order: Fault) -> None:
    ctypes.PyDLL(None).sleep(FOR_EVER_S)  # PyDLL does not let go of the GIL


def _segfault(_context: RankContext, _order: Fault) -> None:
    ctypes.memset(0, 0, 1)


def _livelock(context: RankContext, _order: Fault) -> None:
    """Busy, and beating, without ever getting a step further."""
    while True:
        context.heartbeat(step=context.last_beat.step, phase="train")


def _spin(_context: RankContext, _order: Fault) -> None:
    while True:
        pass


def _ignore_sigterm(_context: RankContext, _order: Fault) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _flood(_context: RankContext, order: Fault) -> None:
    """order.value MiB of output."""
    line = "x" * 1023
    for _ in range(int(order.value * 1024)):
        print(line)


def _eat_memory(_context: RankContext, order: Fault) -> None:
    """Takes up to order.value MiB, 16 at a time; in a control group with less room the kernel ends this."""
    taken = []
    for _ in range(int(order.value / 16)):
        taken.append(b"x" * (16 << 20))


def _feed_child(_context: RankContext, order: Fault) -> None:
    """Waits for a child that takes order.value MiB, as for a data loader's worker; fails when the child is killed."""
    code = f"taken = [b'x' * (16 << 20) for _ in range({int(order.value / 16)})]"
    subprocess.run([sys.executable, "-c", code], check=True)


def _leak_child(_context: RankContext, _order: Fault) -> None:
    """A process that outlives its parent wherever it can: another session, another parent."""
    code = f"import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep({FOR_EVER_S})"
    subprocess.run([sys.executable, "-c", code], check=True)


def _loader_killed(_context: RankContext, _order: Fault) -> None:
    """A data loader whose worker process is killed (F13)."""
    from torch.utils.data import DataLoader

    list(DataLoader(_Deadly(), num_workers=1))  # type: ignore[arg-type]


class _Deadly:
    """A dataset whose second sample kills the process that reads it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


KINDS: dict[str, Callable[[RankContext, Fault], None]] = {
    "sigkill": _signal(signal.SIGKILL),
    "sigstop": _signal(signal.SIGSTOP),
    "segfault": _segfault,
    "abort": lambda _context, _order: os.abort(),
    "exception": _raise(lambda: ValueError("the script says: fail here")),
    "sys_exit": lambda _context, order: sys.exit(int(order.value)),
    "exit": lambda _context, order: os._exit(int(order.value)),
    "return": _raise(EarlyReturn),
    "bad_config": _raise(lambda: ConfigError("pretrain.batch.size=0: must be at least 1")),
    "bad_data": _raise(lambda: DataError("shard 000017 has a bad digest")),
    "bad_checkpoint": _raise(lambda: CheckpointError("step 20 belongs to another run")),
    "diverged": _raise(lambda: Diverged("loss is nan for 3 steps")),
    "memory": _raise(MemoryError),
    "store_gone": _raise(lambda: StoreUnavailable("the bucket did not answer for 120 s")),
    "hold_gil": _hold_gil,
    "livelock": _livelock,
    "spin": _spin,
    "slow": lambda _context, order: time.sleep(order.value),
    "sleep_data": _sleep("data_wait", polls=True),
    "sleep_evaluation": _sleep("evaluation", polls=True),
    "sleep_deaf": _sleep("evaluation", polls=False),
    "ignore_sigterm": _ignore_sigterm,
    "flood": _flood,
    "eat_memory": _eat_memory,
    "feed_child": _feed_child,
    "leak_child": _leak_child,
    "loader_killed": _loader_killed,
}
