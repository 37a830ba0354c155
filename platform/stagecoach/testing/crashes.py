"""SIGKILL at the lines of `submit_job` on the local launcher, and 32 processes that call it at once (reliability.md F60, F67).

`python -m stagecoach.testing.crashes {states|lines|race} FOLDER`: a process of its own, because it forks, which only a process with one
thread may do. It prints one JSON object. Nothing of the launcher is changed for it: a trace function counts lines and kills.

A killed process leaves behind what is outside of it: files, and processes it has started; its locks go with it. Lines between which
neither changes are one crash point. `states` kills at the first and the last line of each such stretch, `lines` at every line (minutes).
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

# Everything is imported before the first fork, so that a child's lines are submit_job's own and not those of imports.
import stagecoach.launch
import stagecoach.launch.local_scheduler
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.processes import processes_of, state_of
from stagecoach.launch.submit import submit_job
from stagecoach.testing.local_world import LocalWorld, wait_for

LAUNCH = str(Path(stagecoach.launch.__file__).parent)
NUM_CALLERS = 32
RAISED = "raised: "


def submit(world: LocalWorld) -> str:
    """One caller's whole part. Returns the handle's uid."""
    spec = world.spec()
    return submit_job(world.launcher(), JobFolder.open(spec.job_uri), spec).uid


def trace_lines(on_line: Callable[[int], None]) -> None:
    """Calls `on_line` with 1, 2, 3, ... before each line of stagecoach.launch that this process runs."""
    number = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal number
        if not frame.f_code.co_filename.startswith(LAUNCH):
            return None
        if event == "line":
            number += 1
            on_line(number)
        return trace

    sys.settrace(trace)


def die_at(line: int) -> Callable[[int], None]:
    """SIGKILL to this process before that line."""
    return lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == line else None


def outside(world: LocalWorld) -> list[str]:
    """What a caller leaves when it dies now: files' names (but those that a node's process writes), and which nodes have processes."""
    # os.walk minds no folder that goes while it looks; Path.rglob raises
    files = [os.path.relpath(os.path.join(top, name), world.root) for top, _, names in os.walk(world.root) for name in names]
    kept = [name for name in files if not ("node-" in name and name.endswith((".json", ".starts")))]
    folders = [path for path in (world.state / "jobs").glob("*") if path.is_dir()]
    running = {state_of(process) for folder in folders for process in processes_of(folder)} - {""}  # one may end between the two looks
    return sorted(kept) + sorted(running)


def lines_by_state(folder: Path) -> list[list[int]]:
    """The lines of one undisturbed submit, in stretches between which something outside changed."""
    world = LocalWorld(folder / "undisturbed")

    def run() -> str:
        stretches: list[list[int]] = []
        seen: list[str] | None = None

        def look(number: int) -> None:
            nonlocal seen
            now = outside(world)
            if now != seen:
                stretches.append([])
            stretches[-1].append(number)
            seen = now

        trace_lines(look)
        submit(world)
        sys.settrace(None)
        return json.dumps(stretches)

    found: list[list[int]] = json.loads(str(answer(*in_child(run))))
    world.close()
    return found


def in_child(action: Callable[[], str]) -> tuple[int, int]:
    """Forks a child that writes action's answer to a pipe. Returns (its pid, the pipe's reading end)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, action().encode())
        except BaseException as error:
            os.write(writing, f"{RAISED}{error!r}\n{traceback.format_exc()}".encode())
        os._exit(0)
    os.close(writing)
    return pid, reading


def answer(pid: int, reading: int) -> str | None:
    """What the child wrote; None when SIGKILL ended it. Raises RuntimeError with what the action raised."""
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if text.startswith(RAISED):
        raise RuntimeError(text)
    return None if os.WIFSIGNALED(status) else text


def crash_at(folder: Path, line: int) -> dict[str, Any]:
    """A new job: one caller dies before that line, another does it again. Says what the first left, and whether all is right in the end."""
    world = LocalWorld(folder / str(line))

    def die() -> str:
        trace_lines(die_at(line))
        return submit(world)

    died = answer(*in_child(die)) is None
    claimed, jobs = list(world.root.glob("runs/**/submissions/1.json")), world.launcher().list()
    second = answer(*in_child(lambda: submit(world)))
    handles = world.launcher().list()
    starts = world.starts(handles[0]) if handles else []
    submissions = sorted(path.name for path in world.root.glob("runs/**/submissions/*"))
    right = died and [handle.uid for handle in handles] == [second] and starts == [1, 1]
    world.close()
    return {
        "line": line,
        "left": "a job" if jobs else "a claim" if claimed else "nothing",
        "right": right and submissions == ["1.json", "1.submitted.json"],
        "second": second,
        "starts": starts,
        "submissions": submissions,
    }


def crash_at_lines(folder: Path, *, every: bool) -> dict[str, Any]:
    """At every line, or at the first and the last of each stretch."""
    stretches = lines_by_state(folder)
    lines = sorted({line for stretch in stretches for line in (stretch if every else (stretch[0], stretch[-1]))})
    results = [crash_at(folder, line) for line in lines]
    return {
        "lines": sum(map(len, stretches)),
        "states": len(stretches),
        "crashes": len(results),
        **{f"left {what}": sum(result["left"] == what for result in results) for what in ("nothing", "a claim", "a job")},
        "wrong": [result for result in results if not result["right"]],
    }


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
    experiments: dict[str, Callable[[Path], dict[str, Any]]] = {
        "states": lambda folder: crash_at_lines(folder, every=False),
        "lines": lambda folder: crash_at_lines(folder, every=True),
        "race": race,
    }
    print(json.dumps(experiments[sys.argv[1]](Path(sys.argv[2]))))
