"""SIGKILL at every line of `submit_job` on the local launcher, and 32 processes that call it at once (reliability.md F60, F67).

`python -m stagecoach.testing.crashes {lines|race} FOLDER`: a process of its own, because it forks, which only a process with one thread may
do. It prints one JSON object. Nothing of the launcher is changed for it: a trace function counts lines and kills.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

# Everything is imported before the first fork, so that a child's lines are submit_job's own and not those of imports.
import stagecoach.launch
import stagecoach.launch.local_scheduler
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.submit import submit_job
from stagecoach.testing.local_world import LocalWorld, wait_for

LAUNCH = str(Path(stagecoach.launch.__file__).parent)
NUM_CALLERS = 32


def submit(world: LocalWorld) -> str:
    """One caller's whole part. Returns the handle's uid."""
    spec = world.spec()
    return submit_job(world.launcher(), JobFolder.open(spec.job_uri), spec).uid


def kill_me_at_line(number: int) -> None:
    """SIGKILL to this process when it is about to run its `number`-th line of stagecoach.launch."""
    left = number

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(LAUNCH):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def in_child(action: Callable[[], str]) -> tuple[int, int]:
    """Forks a child that writes action's answer to a pipe. Returns (its pid, the pipe's reading end)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, action().encode())
        except BaseException as error:
            os.write(writing, f"error: {error!r}".encode())
        os._exit(0)
    os.close(writing)
    return pid, reading


def answer(pid: int, reading: int) -> str | None:
    """What the child wrote; None when SIGKILL ended it."""
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return None if os.WIFSIGNALED(status) else text


def crash_at_every_line(folder: Path) -> dict[str, Any]:
    """A new job for each line: one caller dies there, another does it again. Stops at the first caller that gets through alive."""
    found: dict[str, Any] = {"lines": 0, "left_nothing": 0, "left_a_claim": 0, "left_a_job": 0, "wrong": []}
    while True:
        line = found["lines"] + 1
        world = LocalWorld(folder / str(line))
        spec = world.spec()

        def die(world: LocalWorld = world, line: int = line) -> str:
            kill_me_at_line(line)
            return submit(world)

        survived = answer(*in_child(die))
        if survived is None:
            claims, jobs = list((folder / str(line)).glob("runs/**/submissions/1.json")), world.launcher().list()
            found["left_a_job" if jobs else "left_a_claim" if claims else "left_nothing"] += 1
        second = answer(*in_child(lambda world=world: submit(world)))  # type: ignore[misc]
        handles = world.launcher().list()
        starts = world.starts(handles[0]) if handles else []
        submissions = sorted(path.name for path in (folder / str(line)).glob("runs/**/submissions/*"))
        right = [handle.uid for handle in handles] == [second] and starts == [1] * spec.nodes
        if not right or submissions != ["1.json", "1.submitted.json"]:
            found["wrong"].append({"line": line, "second": second, "starts": starts, "submissions": submissions})
        world.close()
        if survived is not None:
            return found
        found["lines"] = line


def race(folder: Path) -> dict[str, Any]:
    """32 processes wait for one signal, then submit."""
    world = LocalWorld(folder)
    gate, opener = os.pipe()

    def run() -> str:
        os.close(opener)
        os.read(gate, 1)  # ends for all of them when the opener is closed
        return submit(world)

    callers = [in_child(run) for _ in range(NUM_CALLERS)]
    os.close(opener)
    uids = [answer(*caller) for caller in callers]
    handle = world.launcher().list()[0]
    wait_for(lambda: world.is_up(handle), "the job to be up")
    found = {
        "callers": len(uids),
        "uids": sorted(set(map(str, uids))),
        "jobs": len(world.launcher().list()),
        "starts": world.starts(handle),
        "processes": world.num_processes(handle),
        "submissions": sorted(path.name for path in folder.glob("runs/**/submissions/*")),
    }
    world.close()
    return found


if __name__ == "__main__":
    experiment = {"lines": crash_at_every_line, "race": race}[sys.argv[1]]
    print(json.dumps(experiment(Path(sys.argv[2]))))
