"""How everything below a supervisor is marked, and how what outlives it is found and ended.

Run as a file it is a rank's guard: `python -I -S tree.py TOKEN FOLDER SUPERVISOR`. Standard library only, so that it starts in no time.
Supervisors have a sweeper that does the same (`stagecoach.supervisor.sweeper`); a guard is for the day when both are killed at once. What
a rank started by exec would live on then: the kernel ends only processes that asked for it (PR_SET_PDEATHSIG) and their likes.
"""

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

TREE = "STAGECOACH_TREE"  # in the environment of everything below a supervisor, but sweepers and guards
SHM_LIST = "shm"  # in FOLDER: names the supervisor saw in use
SETTLE_S = 0.3  # helpers such as multiprocessing's resource tracker tidy up by themselves when their process goes
LINGER_S = 2.0  # a rank dies a moment before its supervisor is seen dead: the kernel tells children first
ROUNDS = 200


def guard(token: str, folder: Path, supervisor: int) -> None:
    """Waits for the supervisor's end and tidies up after it; leaves when the rank, which holds our standard input, ended well before it."""
    ignore_polite_signals()
    try:
        watch = os.pidfd_open(supervisor)
    except ProcessLookupError:
        return tidy_up(token, folder)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.register(0, select.POLLIN)
    if watch not in dict(poll.poll()):
        poll.unregister(0)
        if not poll.poll(LINGER_S * 1000):
            return None  # the supervisor lives, and looks after its tree itself
    return tidy_up(token, folder)


def ignore_polite_signals() -> None:
    """What ends a whole session must not end who cleans up after it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def tidy_up(token: str, folder: Path) -> None:
    """Ends what carries the token, removes shared memory that libraries left, and the node's local folder."""
    sweep(lambda value: value == token, settle_s=SETTLE_S)
    remove_listed_shm(folder)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(is_ours: Callable[[str], bool], *, settle_s: float = 0.0) -> int:
    """SIGKILL to every process whose TREE variable `is_ours`, until none is left. Returns how many were killed."""
    settled = time.monotonic() + settle_s
    while time.monotonic() < settled and _carriers(is_ours):
        time.sleep(0.02)
    killed: set[int] = set()
    for _ in range(ROUNDS):
        carriers = _carriers(is_ours)
        if not carriers:
            break
        for pid in carriers:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    return len(killed)


def _carriers(is_ours: Callable[[str], bool]) -> list[int]:
    """Living processes with such a variable. A zombie's environment reads as empty."""
    wanted = TREE.encode() + b"="
    found = []
    for name in os.listdir("/proc"):
        if not name.isascii() or not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            raw = Path("/proc", name, "environ").read_bytes()
        except OSError:
            continue
        if any(is_ours(pair[len(wanted) :].decode(errors="replace")) for pair in raw.split(b"\0") if pair.startswith(wanted)):
            found.append(int(name))
    return found


def remove_listed_shm(folder: Path) -> None:
    """Removes the shared memory that stands in the supervisor's list."""
    try:
        names = (folder / SHM_LIST).read_text().split()
    except OSError:
        return
    for name in names:
        Path("/dev/shm", Path(name).name).unlink(missing_ok=True)  # noqa: S108


if __name__ == "__main__":
    guard(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
