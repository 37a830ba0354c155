"""Processes of containers whose nodes run on this machine, and the faults that a test cluster's own command makes."""

import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

COMMAND = "STAGECOACH_TEST_CLUSTER_COMMAND"  # a program that takes `crash-node node-1`, `kill kube-apiserver`, ...


def cluster(*words: str) -> None:
    """A fault, or its end. Raises CalledProcessError."""
    subprocess.run([os.environ[COMMAND], *words], check=True, capture_output=True, text=True, timeout=180)


def pids_of_container(container: str) -> list[int]:
    """All processes in its control group, its first one first."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and container in _read(folder / "cgroup"):
            found.append((_pid_inside(_read(folder / "status")), int(folder.name)))
    return [pid for _, pid in sorted(found)]


def pids_of_job(job_uri: str) -> list[int]:
    """All processes that some pod, or an attempt in it, began for that job, wherever they are now. Those that have ended are not there."""
    mark = f"STAGECOACH_JOB_URI={job_uri}"
    found = [
        int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit() and mark in _read(folder / "environ").split("\0")
    ]
    return alive(found)


def freeze(pids: Iterable[int]) -> None:
    """They stand still, and what is sent to them waits."""
    _signal(pids, signal.SIGSTOP)


def thaw(pids: Iterable[int]) -> None:
    _signal(pids, signal.SIGCONT)


def kill(pids: Iterable[int]) -> None:
    _signal(pids, signal.SIGKILL)


def alive(pids: Iterable[int]) -> list[int]:
    """Those that have not ended; one that nobody has collected yet has."""
    return [pid for pid in pids if (stat := _read(Path(f"/proc/{pid}/stat"))) and stat.rpartition(")")[2].split()[0] != "Z"]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _pid_inside(status: str) -> int:
    """Its number in the innermost name space; a thread that is ending has none."""
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "0")
    return int(line.split()[-1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
