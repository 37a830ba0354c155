"""A launcher in memory, for tests of what stands on launchers. It passes the very suite that real ones pass (`launcher_contract.py`)."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState, LaunchSpec, LogLine, RunHandle
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import check_spec
from stagecoach.launch.differences import name_taken

CrashPoint = Literal["before_create", "after_create"]


class Crashed(BaseException):
    """The caller died here. No Exception: nothing that handles errors may survive it, as nothing survives SIGKILL."""


@dataclass
class FakeJob:
    """One job. `starts` counts how often it was really started."""

    spec: LaunchSpec
    uid: str
    state: JobState = JobState(phase=Phase.RUNNING, attempt=1)
    starts: int = 1
    lines: list[LogLine] = field(default_factory=list)


@dataclass
class FakeCluster:
    """What outlives every launcher: the jobs by name. Tests move them along with `finish`, `lose` and `preempt`."""

    jobs: dict[str, FakeJob] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    uids: Iterator[int] = field(default_factory=count)

    def finish(self, name: str, code: int) -> None:
        """Every node ended with `code`."""
        phase = Phase.SUCCEEDED if code == ExitCode.DONE else Phase.FAILED
        self._move(name, phase, f"ended with {code}" if code else "", exit_code=code)

    def lose(self, name: str) -> None:
        """Its processes vanished without a word."""
        self._move(name, Phase.FAILED, "the supervisor of node 0 died without a word", exit_code=int(ExitCode.RETRY))

    def preempt(self, name: str) -> None:
        """Somebody more important has its place; it waits."""
        self._move(name, Phase.PREEMPTED, "preempted by a job of higher priority")

    def resume(self, name: str) -> None:
        """It has a place again."""
        restarts = self.jobs[name].state.restarts + 1
        self.jobs[name].state = JobState(phase=Phase.RUNNING, attempt=restarts + 1, restarts=restarts)

    def say(self, name: str, text: str, *, rank: int = 0, attempt: int = 1) -> None:
        """A line of one rank's log."""
        self.jobs[name].lines.append(LogLine(attempt=attempt, rank=rank, text=text))

    def _move(self, name: str, phase: Phase, reason: str, exit_code: int | None = None) -> None:
        before = self.jobs[name].state
        self.jobs[name].state = JobState(phase=phase, reason=reason, attempt=before.attempt, restarts=before.restarts, exit_code=exit_code)


class FakeLauncher:
    """One caller's launcher. Several over one cluster are several processes; `crash_at` kills this one in its next submit."""

    name = "fake"

    def __init__(self, cluster: FakeCluster | None = None, *, crash_at: CrashPoint | None = None) -> None:
        self.cluster, self.crash_at = cluster or FakeCluster(), crash_at

    def submit(self, spec: LaunchSpec) -> RunHandle:
        check_spec(spec)
        self._crash("before_create")
        with self.cluster.lock:
            job = self.cluster.jobs.get(spec.name)
            if job is None:
                job = FakeJob(spec=spec, uid=f"uid-{next(self.cluster.uids)}")
                job.lines.append(LogLine(attempt=0, rank=-1, text="supervisor is up"))
                self.cluster.jobs[spec.name] = job
            elif job.spec.digest != spec.digest:
                raise name_taken(spec.name, job.spec, spec)
        self._crash("after_create")
        return self._handle(job)

    def attach(self, name: str) -> RunHandle | None:
        job = self.cluster.jobs.get(name)
        return self._handle(job) if job else None

    def describe(self, handle: RunHandle) -> JobState:
        job = self._job(handle)
        return job.state if job else JobState(phase=Phase.UNKNOWN, reason=f"no job {handle.name!r} (uid {handle.uid})")

    def logs(self, handle: RunHandle, *, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """What was said so far; `follow` waits for no more, since nothing here moves by itself."""
        job = self._job(handle)
        for line in list(job.lines) if job else ():
            if rank in (None, line.rank) and attempt in (None, line.attempt):
                yield line

    def cancel(self, handle: RunHandle) -> None:
        job = self._job(handle)
        if job and not job.state.phase.is_terminal:
            self.cluster._move(handle.name, Phase.CANCELLED, "cancelled", exit_code=int(ExitCode.STOPPED))

    def pause(self, handle: RunHandle, *, because: str = "") -> None:
        job = self._job(handle)
        if job and not job.state.phase.is_terminal:
            self.cluster._move(handle.name, Phase.PAUSED, because or "paused")

    def unpause(self, handle: RunHandle) -> None:
        job = self._job(handle)
        if job and job.state.phase == Phase.CANCELLED:
            raise ConfigError(f"{handle.name!r} was cancelled, which is for good; submit it again")
        if job and job.state.phase == Phase.PAUSED:
            self.cluster.resume(handle.name)

    def delete(self, handle: RunHandle) -> None:
        with self.cluster.lock:
            if self._job(handle):
                del self.cluster.jobs[handle.name]

    def list(self, *, run_id: str | None = None) -> list[RunHandle]:
        handles = [self._handle(job) for job in self.cluster.jobs.values()]
        return [handle for handle in handles if run_id is None or f"/runs/{run_id}/" in handle.job_uri]

    def _job(self, handle: RunHandle) -> FakeJob | None:
        job = self.cluster.jobs.get(handle.name)
        return job if job and job.uid == handle.uid else None

    def _handle(self, job: FakeJob) -> RunHandle:
        return RunHandle(launcher=self.name, name=job.spec.name, job_uri=job.spec.job_uri, uid=job.uid)

    def _crash(self, point: CrashPoint) -> None:
        if self.crash_at == point:
            self.crash_at = None
            raise Crashed(point)
