"""What a process leaves behind in shared memory, on a machine where others use it too."""

import os
from collections.abc import Set as AbstractSet
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")  # noqa: S108  (it is looked at)


def names() -> set[str]:
    """All that is there now."""
    return set(os.listdir(FOLDER))


def left_behind(before: AbstractSet[str]) -> set[str]:
    """Names that are new since `before`, but those of processes other than this one and its children: other tests run beside it."""
    found = {name: _inode(name) for name in names() - before}
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    elsewhere = {inode for process in psutil.process_iter() if process.pid not in ours for inode in _mapped_by(process.pid)}
    return {name for name, inode in found.items() if inode not in elsewhere and _inode(name) == inode is not None}


def _inode(name: str) -> int | None:
    try:
        return (FOLDER / name).stat().st_ino
    except FileNotFoundError:
        return None


def _mapped_by(pid: int) -> set[int]:
    """Inodes of shared memory that a process has mapped: by inode, as a semaphore's mapping bears another name than its file."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it ended, or may not be looked at
        return set()
    return {int(line.split()[4]) for line in maps.splitlines() if f"{FOLDER}/" in line}
