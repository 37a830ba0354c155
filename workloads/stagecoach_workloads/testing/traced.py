"""The trainer, telling its events to a file as well: tests compare every step, and what a killed supervisor had not yet sent is lost.

Its entry point is "stagecoach_workloads.testing.traced:main"; STAGECOACH_TEST_TRACE is a folder on this machine.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.train import main as train
from stagecoach_workloads.train import prepare

__all__ = ["main", "prepare"]

VARIABLE = "STAGECOACH_TEST_TRACE"


def main(context: RankContext) -> None:
    """Trains. Every event is in `attempt-{n}-rank-{r}.jsonl` before the next line of the trainer runs, whatever is killed then."""
    path = Path(os.environ[VARIABLE]) / f"attempt-{context.attempt}-rank-{context.rank}.jsonl"
    trace = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    tell = context.event

    def event(name: str, value: Any, *, step: int | None = None) -> None:
        tell(name, value, step=step)
        told = {"t": time.time(), "name": name, "value": value, "step": context.last_beat.step if step is None else step}
        os.write(trace, json.dumps(told, default=str).encode() + b"\n")

    context.event = event  # type: ignore[method-assign]
    train(context)
