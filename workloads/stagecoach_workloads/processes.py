"""How processes of a job are tied to each other: nobody outlives its parent (Linux, prctl(2))."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from stagecoach.contract import tree
from stagecoach.contract.names import whole_number
from stagecoach.contract.tree import TREE

STOPS = (signal.SIGTERM, signal.SIGINT)
SUPERVISOR_PID = "STAGECOACH_SUPERVISOR_PID"  # in the environment of agents and ranks
AGENT_PID = "STAGECOACH_AGENT_PID"  # in that of ranks

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def die_with_parent(parent: int | None) -> None:
    """SIGKILL for this process when its parent ends. Ends at once when `parent` (a process id) is gone already."""
    _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # the parent died between our fork and the line above


def let_children_die_too() -> None:
    """Forked children of this process (data-loader workers) die with it.

    The kernel ties a child to the *thread* that made it, so only what the main thread forks is tied: a loader started by a thread that
    ends would be killed with the thread. The others are the supervisor's to find.
    """
    forked_by_main_thread = False

    def before() -> None:
        nonlocal forked_by_main_thread
        forked_by_main_thread = threading.get_native_id() == os.getpid()

    def in_child() -> None:
        if forked_by_main_thread:
            _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))

    os.register_at_fork(before=before, after_in_child=in_child)


@contextlib.contextmanager
def stop_signals_held() -> Iterator[None]:
    """What this thread starts meanwhile is born deaf to SIGTERM and SIGINT, until it calls `ignore_stop_signals`: one that comes while it
    is still importing would end it. Ours are delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """For a process that ends with its parent and leaves a stop to it."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def keep_guard(local_dir: Path) -> None:
    """Starts this rank's guard (`stagecoach.contract.tree`), which ends what we start by exec when our supervisor and its sweeper are
    killed at once. Without a supervisor, or where no process can be started, there is none: it is the last of several means."""
    global _guard
    token, supervisor = os.environ.get(TREE), parent_from_environment(SUPERVISOR_PID)
    if token is None or supervisor is None:
        return
    environment = {name: value for name, value in os.environ.items() if name != TREE}  # guards do not sweep each other
    command = [sys.executable, "-I", "-S", str(tree.__file__), token, str(local_dir.parent), str(supervisor)]
    with contextlib.suppress(OSError):
        _guard = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )


def name_process(name: str) -> None:
    """How `ps`, `top` and py-spy call this process (its first 15 bytes). For the main thread."""
    _LIBC.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), *[ctypes.c_ulong(0)] * 3)


def let_supervisor_look() -> None:
    """Allows py-spy of the supervisor, which is no direct parent, where Yama restricts ptrace; elsewhere it does nothing."""
    _prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY)


def parent_from_environment(variable: str) -> int | None:
    """The process id in `variable`, which whoever started this process set; None when started by hand."""
    return whole_number(os.environ.get(variable, ""))


def _prctl(option: int, value: ctypes.c_ulong) -> None:
    zero = ctypes.c_ulong(0)
    _LIBC.prctl(option, value, zero, zero, zero)


_LIBC = ctypes.CDLL(None, use_errno=True)
_guard: "subprocess.Popen[bytes] | None" = None  # holds its standard input open for as long as we live
