"""Starting a node's process so that it outlives us, and finding and ending every process of a job.

A job's processes are known by their environment: each carries STAGECOACH_LOCAL_STATE, which names the job's folder. That finds ranks and
orphans as well as supervisors, and no pid that the kernel gave to another program meanwhile.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from stagecoach.errors import ClusterUnavailable
from stagecoach.launch import detach
from stagecoach.launch.local_state import NodeFiles

STATE_VARIABLE = "STAGECOACH_LOCAL_STATE"
KILL_WAIT_S = 10.0  # how long a process may take to go after SIGKILL (a device in the middle of a write)
POLL_S = 0.05


def start_node(node: NodeFiles, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Starts one detached process that holds the node's life lock. Only under the job's lock, of a node that is not alive.

    Raises ClusterUnavailable when the machine has no room for another process.
    """
    life = node.take_life()
    log = os.open(node.path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", str(detach.__file__), *command],
            env={**environment, STATE_VARIABLE: str(node.base)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[life],
        )
        failed = starter.wait() != 0
    except OSError as error:
        raise ClusterUnavailable(f"node {node.index} could not be started: {error}; free some processes or memory and try again") from error
    finally:
        os.close(life)  # the child keeps its own: the lock lives as long as it does
        os.close(log)
    if failed:
        raise ClusterUnavailable(f"node {node.index} could not be started (see {node.path('log')}); try again")
    node.path("started").touch()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process of the job in `folder`, however it came about. Zombies have ended."""
    prefix = f"{folder}/node-"
    return [process for process in psutil.process_iter() if state_of(process).startswith(prefix)]


def state_of(process: psutil.Process) -> str:
    """The job and node that a process belongs to, "" for one that belongs to none or has just ended."""
    try:
        return process.environ().get(STATE_VARIABLE, "")
    except (psutil.Error, OSError):
        return ""  # gone meanwhile, a zombie, or another user's


def end_processes(folder: Path, nodes: Iterable[NodeFiles], *, grace_s: float) -> None:
    """SIGTERM to the top of each tree, SIGKILL to all after `grace_s`; returns when none is left and no life lock is held.

    Raises ClusterUnavailable when a process outlives SIGKILL.
    """
    nodes = list(nodes)
    asked: set[psutil.Process] = set()
    killing_from = time.monotonic() + grace_s
    while (found := processes_of(folder)) or any(node.is_alive() for node in nodes):
        if time.monotonic() < killing_from:
            tops = [process for process in found if process not in asked and not _has_parent_in(process, found)]
            _signal(tops, psutil.Process.terminate)
            asked.update(tops)
        else:
            _signal(found, psutil.Process.kill)
        if time.monotonic() > killing_from + KILL_WAIT_S:
            left = ", ".join(str(process.pid) for process in found) or "of another user"
            raise ClusterUnavailable(
                f"processes of {folder.name} outlive SIGKILL by {KILL_WAIT_S:.0f} s (pid {left}); look at them with ps"
            )
        time.sleep(POLL_S)


def _has_parent_in(process: psutil.Process, found: Sequence[psutil.Process]) -> bool:
    try:
        return process.parent() in found
    except psutil.Error:
        return True  # gone meanwhile


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.Error:
            continue
