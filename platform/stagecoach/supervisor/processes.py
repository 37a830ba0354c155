"""Processes of a job, seen from the supervisor: adopting orphans, watching without being the parent, killing a whole tree (Linux)."""

import asyncio
import ctypes
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from stagecoach.contract.names import whole_number

_PR_SET_CHILD_SUBREAPER = 36
# Names that libraries make up for themselves. A file somebody put into /dev/shm on purpose is none of ours to remove.
_LIBRARY_SHM = re.compile(r"/dev/shm/(torch_|psm_|sem\.|pym-|wnsm_|nccl-|cuda\.shm)[^/\s]*")  # noqa: S108
_SHM = "/dev/shm/"  # noqa: S108
_PF_EXITING = 0x4  # proc(5), field 9
TIDY_S = 0.4
KILL_S = 3.0  # a process in the kernel's uninterruptible sleep cannot be waited for longer than this


def become_subreaper() -> None:
    """Orphans among our descendants become our children, and not init's, so that none gets away."""
    libc, zero = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong(0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), zero, zero, zero)


class Reaper:
    """Collects dead children that we adopted. Those we started have somebody who waits for them, and at once: a zombie seen at two
    looks is nobody's."""

    def __init__(self) -> None:
        self._seen_before: set[int] = set()

    def look(self) -> None:
        zombies = set()
        for child in psutil.Process().children():
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    zombies.add(child.pid)
            except psutil.NoSuchProcess:
                continue
        for pid in zombies & self._seen_before:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
        self._seen_before = zombies


class ProcessWatch:
    """Calls back once when a process, not necessarily our child, ends. Holds a pidfd, so a reused number is never hit by a signal."""

    def __init__(self, pid: int, on_end: Callable[[int | None], None]) -> None:
        """`on_end` gets the exit code (negative: the signal), None where its parent collected it first. Raises ProcessLookupError."""
        self.pid = pid
        self.alive = True
        self._on_end = on_end
        self._fd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        code = zombie_exit_code(self.pid)
        self.close()
        self._on_end(code)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has ended is fine."""
        if self.alive:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Stops watching. Idempotent."""
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)


def zombie_exit_code(pid: int) -> int | None:
    """The exit code of a process that ended and is not collected yet (proc(5), field 52), else None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return os.waitstatus_to_exitcode(int(fields[49])) if fields[0] == "Z" else None


def is_ending(pid: int) -> bool:
    """True for a process that ends just now or has ended: its children hear of it (PR_SET_PDEATHSIG) before its pidfd does."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def rank_of(pid: int) -> int | None:
    """RANK in a process's environment; None while it is not ours yet (between fork and exec) or gone."""
    return whole_number(environment_of(pid).get("RANK", ""))


def environment_of(pid: int) -> dict[str, str]:
    """What the process was started with; empty when it is gone or another user's."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if b"=" in entry)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.NoSuchProcess:
            return []


def living_descendants(spare: Iterable[int] = ()) -> list[psutil.Process]:
    """Everything below this process but `spare` and what is below them (also what they start just now), zombies left out."""
    spared, alive = set(spare), []
    for process in psutil.Process().children(recursive=True):  # parents come before their children
        try:
            if process.pid in spared or process.ppid() in spared:
                spared.add(process.pid)
            elif process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


def kill_descendants(spare: Iterable[int] = ()) -> int:
    """SIGKILL to all `living_descendants(spare)`, again until nothing is left. Returns how many would not go within KILL_S.

    Helpers that remove shared memory when their processes are gone get a moment to do so.
    """
    start = time.monotonic()
    while victims := living_descendants(spare):
        if time.monotonic() - start > KILL_S:
            return len(victims)
        is_early = time.monotonic() - start < TIDY_S
        doomed = [process for process in victims if not (is_early and _tidies_up(process))]
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        wait_until_gone([process.pid for process in doomed or victims], 0.2)
    return 0


def _tidies_up(process: psutil.Process) -> bool:
    """multiprocessing's resource tracker and torch's shared-memory manager."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "multiprocessing.resource_tracker" in command or "torch_shm_manager" in command


def wait_until_gone(pids: Iterable[int], timeout_s: float) -> None:
    """Returns when all of them have ended, or at the timeout."""
    poll, open_fds = select.poll(), set()
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        open_fds.add(fd)
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    waiting = set(open_fds)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    for fd in open_fds:
        os.close(fd)


def library_shm(pids: Iterable[int]) -> set[str]:
    """Shared memory that these processes hold under names made up by a library. Whoever is killed cannot remove it."""
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            continue
        found.update(line.partition(_SHM)[2] for line in maps.splitlines() if _SHM in line and not line.endswith("(deleted)"))
    return {_SHM + name for name in found if _LIBRARY_SHM.fullmatch(_SHM + name)}


def remove_shm(names: Iterable[str]) -> None:
    """Removes what library_shm found, as far as it is still there."""
    for name in names:
        if _LIBRARY_SHM.fullmatch(name):
            Path(name).unlink(missing_ok=True)


def oom_kills() -> int:
    """How many processes of this control group the kernel killed for memory so far; 0 where it does not say."""
    for file in _oom_files():
        try:
            words = [line.split() for line in file.read_text().splitlines()]
        except OSError:
            continue
        return sum(int(word[1]) for word in words if len(word) == 2 and word[0] == "oom_kill")
    return 0


def _oom_files() -> list[Path]:
    """Where the kernel counts: of our own group as it names it (v1, v2), else of what a container sees as the whole tree."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    files = [v1 / "memory.oom_control", v2 / "memory.events"]
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return files
    own_v1 = [v1 / path.lstrip("/") / "memory.oom_control" for _, controllers, path in groups if "memory" in controllers.split(",")]
    own_v2 = [v2 / path.lstrip("/") / "memory.events" for number, controllers, path in groups if (number, controllers) == ("0", "")]
    return [*own_v1, *own_v2, *files]
