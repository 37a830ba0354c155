"""SIGKILL at every line of checkpoint gc, and at every single removal (reliability.md F32).

`python -m stagecoach.testing.gc_crashes FOLDER [EVERY]` (every line, or every so-manyth): a process of its own, because it forks, which
only a process with one thread may do. It prints one JSON object: how many kills there were, and what was wrong after any of them.
Nothing of gc is changed for it: a trace function counts lines and kills.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import stagecoach.checkpoints.gc
from stagecoach.checkpoints import candidates, collect, list_checkpoints, quarantine, verify
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach.storage import Store, StoreSettings
from stagecoach.testing.builders import attempt_start
from stagecoach.testing.checkpoints import write_checkpoint

PLACE = "runs/r1/stages/00-pretrain"
KEPT = [(25, 2), (20, 2)]


def open_job(root: Path) -> JobFolder:
    """Nothing is flushed to the disk: processes die here, not machines."""
    return JobFolder.open(f"{root.as_uri()}/{PLACE}", settings=StoreSettings(fsync=False))


def prepare(root: Path) -> None:
    """Of every sort one: good, torn, quarantined, fenced."""
    job = open_job(root)
    job.claim_attempt(attempt_start(attempt=1))
    for step in (5, 10):
        write_checkpoint(job, step, 1, world_size=1)
    quarantine(job, write_checkpoint(job, 7, 1, world_size=1), "for a test")
    write_checkpoint(job, 15, 1, world_size=1, commit=False)
    job.claim_attempt(attempt_start(attempt=2, resumed_from_step=10))
    write_checkpoint(job, 20, 1, world_size=1)
    for step, attempt in reversed(KEPT):
        write_checkpoint(job, step, attempt, world_size=1)


def is_counted(code: CodeType) -> bool:
    return code.co_filename == stagecoach.checkpoints.gc.__file__ or code is Store.delete.__code__


def trace_lines(on_line: Callable[[int], None]) -> None:
    """Calls `on_line` with 1, 2, 3, ... before each line, in every thread."""
    number, lock = 0, threading.Lock()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal number
        if not is_counted(frame.f_code):
            return None
        if event == "line":
            with lock:
                number += 1
                on_line(number)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def killed_at(root: Path, line: int) -> bool:
    """Runs gc in a fork that dies before that line. False when it ended before."""
    child = os.fork()
    if child == 0:
        trace_lines(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == line else None)
        collect(open_job(root), keep=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"gc itself failed in the fork that was to die at line {line}")
    return False


def wrong_after_kill(root: Path) -> list[str]:
    """What a reader, and then the next gc, find."""
    job = open_job(root)
    said, good = [], 0
    for ref in candidates(job):
        try:
            verify(job, ref, level="full")
            good += 1
        except CheckpointError as error:
            said.append(f"offered half-deleted: {error}")
    if good < len(KEPT):
        said.append(f"{good} good ones are left")
    collect(job, keep=2)
    left = [(each.ref.step, each.ref.attempt) for each in list_checkpoints(job)]
    return said if left == KEPT else [*said, f"the next gc left {left}"]


def main(folder: str, every: int = 1) -> None:
    """Kills at one line after the other until gc gets through."""
    template, root = Path(folder) / "template", Path(folder) / "tried"
    prepare(template)
    kills, wrong = 0, []
    for line in itertools.count(1, every):
        shutil.copytree(template, root)
        if not killed_at(root, line):
            break
        kills += 1
        wrong += [f"killed at line {line}: {says}" for says in wrong_after_kill(root)]
        shutil.rmtree(root)
    print(json.dumps({"kills": kills, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
