"""Ctrl-C in `make demo` and `make learn`, with real processes and signals. `stagecoach` is a script that takes its time as the real one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[3] / "demo"
CHILD = """#!{python}
import sys, time
try:
    print("at work", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    try:
        print("Ctrl-C once more cancels", flush=True)
        time.sleep({patience})
    except KeyboardInterrupt:
        sys.exit("cancelled")
    sys.exit("the job goes on")
"""
START = """
import os, runpy, sys
_, sys.executable, *sys.argv = sys.argv  # the command is looked for beside the interpreter
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PROGRAMS = pytest.mark.parametrize(("program", "run_ids"), [("run.py", ["demo"]), ("learn.py", ["learn", "captions-only"])])


@contextmanager
def started(folder: Path, program: str, *, patience: float) -> Iterator[subprocess.Popen[str]]:
    """A copy of the demo, as a terminal starts it: a group of its own, which Ctrl-C reaches as a whole. It works in its own folder."""
    shutil.copytree(DEMO, folder / "demo", ignore=lambda _, names: [name for name in names if not name.endswith(".py")])
    child = folder / "bin" / "stagecoach"
    child.parent.mkdir()
    child.write_text(CHILD.format(python=sys.executable, patience=patience))
    child.chmod(0o755)
    command = [sys.executable, "-c", START, str(child.with_name("python")), str(folder / "demo" / program)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, process_group=0, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_to(process: subprocess.Popen[str], line: str) -> None:
    """Reads stdout up to a line."""
    assert process.stdout is not None
    assert any(each.strip() == line for each in process.stdout), line


@PROGRAMS
def test_ctrl_c_waits_for_what_the_command_says_and_tells_how_to_go_on(program: str, run_ids: list[str], tmp_path: Path) -> None:
    with started(tmp_path, program, patience=1.0) as process:
        read_to(process, "at work")
        os.killpg(process.pid, signal.SIGINT)
        read_to(process, "Ctrl-C once more cancels")
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith("the job goes on\n")  # the command's last word, and ours behind it
    assert "Traceback" not in told
    assert "may still run" in told
    folder = tmp_path / "demo" / ("learning" if program == "learn.py" else ".")
    command = f"STAGECOACH_STATE_DIR={folder.resolve()}/state {tmp_path}/bin/stagecoach"
    for run_id in run_ids:
        for word in ("cancel", "resume"):
            assert f"{command} {word} {run_id} --root file://{folder.resolve()}/runs\n" in told


def test_a_second_ctrl_c_reaches_the_command(tmp_path: Path) -> None:
    with started(tmp_path, "run.py", patience=60.0) as process:
        read_to(process, "at work")
        os.killpg(process.pid, signal.SIGINT)
        read_to(process, "Ctrl-C once more cancels")
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told.splitlines()[0]) == (130, "cancelled")
    assert "Traceback" not in told
