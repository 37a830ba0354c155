"""The supervisor's will: `python -m stagecoach.supervisor.sweeper TOKEN FOLDER`. Standard library only, so that it starts in no time.

SIGKILL of the supervisor leaves nobody who knows its descendants. Ranks die with their parents (PR_SET_PDEATHSIG), but what a rank
started by exec does not. This process waits on a pipe whose other end only the supervisor holds; when that closes it kills whatever
carries TOKEN in its environment, removes shared memory that libraries left, and the node's local folder.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

TREE = "STAGECOACH_TREE"  # in the environment of everything below a supervisor
SHM_LIST = "shm"  # in FOLDER: names the supervisor saw in use
SETTLE_S = 0.3  # helpers such as multiprocessing's resource tracker tidy up by themselves when their process goes
ROUNDS = 200


def main() -> None:
    """Waits for the end of the supervisor, then tidies up after it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    token, folder = sys.argv[1], Path(sys.argv[2])
    while os.read(0, 1024):
        pass
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
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            raw = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue
        if any(is_ours(pair[len(wanted) :].decode(errors="replace")) for pair in raw.split(b"\0") if pair.startswith(wanted)):
            found.append(int(entry.name))
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
    main()
