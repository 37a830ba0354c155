"""What the local launcher keeps on this machine: `{state}/jobs/{name}/`. No process owns it; files and locks say everything.

    lock            flock while somebody submits, cancels or deletes
    job.json        what was asked: spec, digest, uid; written before anything is started
    cancelled       somebody asked to stop it
    node-{i}.life   flock held by the node's process from its birth to its death: it inherits the open file from the launcher, so there is
                    no moment in which a node runs unseen, and no pid that could be another's
    node-{i}.started  the launcher has seen it start
    node-{i}.json   pid and start time, by the node's process
    node-{i}.exit   code and reason, by the node's process just before it ends; missing after a SIGKILL
    node-{i}.log    its output

`state` is STAGECOACH_STATE_DIR, by default `${XDG_STATE_HOME:-~/.local/state}/stagecoach`; it must be on a local disk.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stagecoach.constants import ExitCode
from stagecoach.contract.plan import Count, WholeNumber
from stagecoach.contract.records import Stored, decode, encode
from stagecoach.errors import ClusterUnavailable, ConfigError, ContractError

LOCK_WAIT_S = 30.0  # a submit holds the lock for some 20 ms a node
Condition = Literal["absent", "starting", "running", "ended", "dead"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalJob(Stored):
    """`job.json`. `spec` is None for an app that plain `torchx run` started."""

    FORMAT = "stagecoach.local-job"

    name: str
    uid: str
    digest: str
    job_uri: str = ""
    submission: WholeNumber = 0
    nodes: Count
    grace_s: Count
    spec: Mapping[str, Any] | None = None
    roles: tuple[str, ...] = field(default_factory=tuple)  # the role of each node
    created_at: str


@dataclass(frozen=True)
class NodeView:
    """One node as its files and its lock show it. dead: it was started, is gone and left no exit."""

    index: int
    condition: Condition
    exit_code: int | None = None
    reason: str = ""

    @property
    def is_alive(self) -> bool:
        return self.condition in ("starting", "running")


@dataclass(frozen=True)
class NodeFiles:
    """The files of one node. `base` is `{job folder}/node-{i}`, which the node's process knows as STAGECOACH_LOCAL_STATE."""

    base: Path
    index: int

    def path(self, suffix: str) -> Path:
        return self.base.with_name(f"{self.base.name}.{suffix}")

    def is_alive(self) -> bool:
        """True while a process holds the node's life lock. A shared lock is what asks: askers do not see each other."""
        try:
            probe = os.open(self.path("life"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    def take_life(self) -> int:
        """An open file that holds the life lock, for the node's process to inherit. Only under the job's lock, of a dead node."""
        life = os.open(self.path("life"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(life, fcntl.LOCK_EX)  # waits for no one but a passing `is_alive`
        return life

    def view(self) -> NodeView:
        """Liveness first: an exit is written before the process dies, so a node seen dead has written all it will ever write."""
        if self.is_alive():
            return NodeView(self.index, "running" if self.path("json").exists() else "starting")
        ended = read_json(self.path("exit"))
        if ended is not None:
            code = ended.get("code")
            return NodeView(self.index, "ended", code if type(code) is int else int(ExitCode.RETRY), str(ended.get("reason", "")))
        was_there = self.path("started").exists() or self.path("json").exists()
        return NodeView(self.index, "dead" if was_there else "absent")


@dataclass(frozen=True)
class JobDirectory:
    """One job's folder on this machine."""

    path: Path

    @classmethod
    def named(cls, state: Path, name: str) -> "JobDirectory":
        """Raises ContractError for what is no name: it may come out of a bucket, and must not lead elsewhere."""
        if "/" in name or name in ("", ".", ".."):
            raise ContractError(f"{name!r} is no name of a job")
        return cls(state / "jobs" / name)

    @contextmanager
    def locked(self, *, create: bool = False) -> Iterator[bool]:
        """Holds the job's lock. Yields False, and holds nothing, when there is no such job and none is to be made."""
        held = self._take_lock(create=create)
        try:
            yield held is not None
        finally:
            if held is not None:
                os.close(held)

    def _take_lock(self, *, create: bool) -> int | None:
        lock = self.path / "lock"
        while True:
            if create:
                make_folder(self.path)
            try:
                held = os.open(lock, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
            except FileNotFoundError:
                if create:
                    continue  # deleted between the two calls
                return None
            try:
                _wait_for_lock(held, self.path.name)
            except BaseException:
                os.close(held)
                raise
            if _is_same_file(held, lock):
                os.pwrite(held, f"{os.getpid():<10}\n".encode(), 0)
                return held
            os.close(held)  # while we waited the job was deleted, and perhaps made anew

    def read(self) -> LocalJob | None:
        """None when there is no such job, or its submitter died before it had said what it wanted."""
        file = self.path / "job.json"
        try:
            return decode(LocalJob, file.read_bytes(), uri=str(file))
        except FileNotFoundError:
            return None

    def write(self, job: LocalJob) -> None:
        write_atomically(self.path / "job.json", encode(job))

    def nodes(self, job: LocalJob) -> list[NodeFiles]:
        return [NodeFiles(self.path / f"node-{index}", index) for index in range(job.nodes)]

    def views(self, job: LocalJob) -> list[NodeView]:
        return [node.view() for node in self.nodes(job)]

    @property
    def is_cancelled(self) -> bool:
        return (self.path / "cancelled").exists()

    def mark_cancelled(self) -> None:
        write_atomically(self.path / "cancelled", b"")

    def remove(self) -> None:
        """Only under the job's lock. The folder leaves its name in one step, so that nobody ever sees half of it."""
        trash = Path(tempfile.mkdtemp(prefix=".deleted-", dir=self.path.parent))
        self.path.rename(trash / self.path.name)
        shutil.rmtree(trash, ignore_errors=True)


def job_directories(state: Path) -> list[JobDirectory]:
    """Every job's folder, by name."""
    jobs = state / "jobs"
    if not jobs.is_dir():
        return []
    return [JobDirectory(path) for path in sorted(jobs.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def check_folder(path: Path) -> None:
    """Raises ConfigError where this user could not keep jobs below `path`. Makes nothing."""
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise _no_folder(path, f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _no_folder(path, "Permission denied")


def make_folder(path: Path) -> None:
    """With all folders above it. Raises ConfigError where that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error.strerror or str(error)) from None


def _no_folder(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path}: local jobs cannot be kept there ({why}); set STAGECOACH_STATE_DIR to a folder that may be written")


def write_atomically(path: Path, body: bytes) -> None:
    """All of `body` or nothing, also after a power cut."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object; None when it is missing or no object."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def now() -> str:
    """UTC, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def written_at(path: Path) -> str | None:
    """When a file was written, UTC, for people."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except FileNotFoundError:
        return None


def _wait_for_lock(held: int, name: str) -> None:
    """Raises ClusterUnavailable after LOCK_WAIT_S: the holder may have been stopped in the middle, and then it would be for ever."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                holder = os.pread(held, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise ClusterUnavailable(
                    f"job {name!r} has been locked by another launcher (pid {holder}) for {LOCK_WAIT_S:g} s; "
                    "if it is stopped, let it go on (fg) or kill it, then try again"
                ) from None
        time.sleep(0.01)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
