"""The `local` launcher: detached supervisors on this machine (architecture.md section 4). The embedded default.

A killed launcher leaves its jobs running; another one attaches to them by name. State: `local_state.py`. Starting goes through our TorchX
scheduler (`local_scheduler.py`), which is imported on first use.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec, LogLine, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.launch.appdef import SUPERVISOR, build_app
from stagecoach.launch.ledger_view import LedgerRead, end_dead_attempt, read_ledger
from stagecoach.launch.local_logs import job_lines
from stagecoach.launch.local_phase import LedgerView, job_state
from stagecoach.launch.local_state import JobDirectory, LocalJob, check_folder, job_directories, written_at
from stagecoach.launch.local_stop import cancel_job
from stagecoach.site import state_folder

if TYPE_CHECKING:
    from stagecoach.launch.local_scheduler import StagecoachLocalScheduler

MOST_RANKS, RANKS_PER_CORE = 64, 4  # each is a process that holds torch: a typing error must not take the machine down
_RUN_OF_URI = re.compile(r"/runs/([^/]+)/")


class LocalLauncher:
    """Jobs of this user on this machine. Any number of instances, in any number of processes, see the same jobs."""

    name = "local"

    def __init__(self, state: Path | None = None, *, module: str = SUPERVISOR) -> None:
        """`module` is what `python -m` starts on every node."""
        self.state, self.module = state or state_folder(), module

    def submit(self, spec: LaunchSpec) -> RunHandle:
        """Create or attach; completes a job whose submitter died half-way. Raises NameTaken with what differs, ConfigError."""
        self._scheduler().submit(build_app(spec, module=self.module), {})
        handle = self.attach(spec.name)
        if handle is None:
            raise StagecoachError(f"job {spec.name!r} was deleted while it was submitted; submit it again")
        return handle

    def check_room(self, ranks: int) -> None:
        """Raises ConfigError where no job of so many ranks could be kept on this machine. Makes nothing."""
        most = max(MOST_RANKS, RANKS_PER_CORE * (os.cpu_count() or 1))
        if ranks > most:
            raise ConfigError(
                f"{ranks} ranks (nodes x ranks per node) on one machine of {os.cpu_count()} cores: at most {most}, or it stands still; "
                "use fewer, or a cluster's launcher"
            )
        check_folder(self.state / "jobs")

    def dry_run(self, spec: LaunchSpec) -> str:
        """What `submit` would start, as JSON; nothing is started or written."""
        return str(self._scheduler().submit_dryrun(build_app(spec, module=self.module), {}))

    def attach(self, name: str) -> RunHandle | None:
        job = JobDirectory.named(self.state, name).read()
        return _handle(job) if job else None

    def describe(self, handle: RunHandle) -> JobState:
        """Files and locks first, then the ledger. A leader found dead gets its attempt ended in the ledger, so that it can be explained
        when the processes are long gone. UNKNOWN when this machine has no such job."""
        directory = JobDirectory.named(self.state, handle.name)
        job = self._job_of(handle)
        if job is None:
            return JobState(phase=Phase.UNKNOWN, reason=f"no job {handle.name!r} (uid {handle.uid}) on this machine")
        was_cancelled = directory.is_cancelled
        nodes = directory.views(job)
        folder = JobFolder.open(job.job_uri) if job.job_uri else None
        read = read_ledger(folder, job.submission) if folder else LedgerRead(LedgerView(newest=0, all_joined=True))
        ledger, trouble = read.view, read.trouble
        state = job_state(nodes, ledger, cancelled=was_cancelled)
        if folder and not trouble and state.phase.is_terminal and nodes[0].condition == "dead":
            trouble = end_dead_attempt(folder, ledger.newest, cancelled=was_cancelled)
        reason = "; ".join(part for part in (state.reason, trouble) if part)
        return JobState(
            phase=state.phase,
            reason=reason,
            since=_since(directory, job, state.phase),
            attempt=state.attempt,
            restarts=state.restarts,
            exit_code=state.exit_code,
        )

    def logs(self, handle: RunHandle, *, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """Ranks' lines from the bucket, supervisors' from this machine (`local_logs.py`). `follow` ends with the job."""
        job = self._job_of(handle)
        if job is None:
            return iter(())
        directory = JobDirectory.named(self.state, handle.name)
        nodes = directory.nodes(job)
        return job_lines(
            JobFolder.open(job.job_uri) if job.job_uri else None,
            [node.path("log") for node in nodes],
            rank=rank,
            attempt=attempt,
            is_growing=lambda: follow and any(node.is_alive() for node in nodes),
        )

    def cancel(self, handle: RunHandle) -> None:
        """SIGTERM, the job's grace period, SIGKILL; returns when none of its processes is left."""
        if self._job_of(handle):
            cancel_job(JobDirectory.named(self.state, handle.name))

    def delete(self, handle: RunHandle) -> None:
        self.cancel(handle)
        directory = JobDirectory.named(self.state, handle.name)
        with directory.locked() as there:
            job = directory.read() if there else None
            if job and job.uid == handle.uid:
                directory.remove()

    def list(self, *, run_id: str | None = None) -> list[RunHandle]:
        jobs = (directory.read() for directory in job_directories(self.state))
        handles = [_handle(job) for job in jobs if job]
        return [handle for handle in handles if run_id is None or _run_id(handle.job_uri) == run_id]

    def _scheduler(self) -> "StagecoachLocalScheduler":
        try:
            from stagecoach.launch.local_scheduler import StagecoachLocalScheduler
        except ModuleNotFoundError as error:
            missing = (error.name or "torchx").partition(".")[0]
            raise ConfigError(
                f"the local launcher starts jobs through TorchX, and {missing} is not installed: pip install 'stagecoach[control]'"
            ) from error
        return StagecoachLocalScheduler("stagecoach", state=self.state)

    def _job_of(self, handle: RunHandle) -> LocalJob | None:
        job = JobDirectory.named(self.state, handle.name).read()
        return job if job and job.uid == handle.uid else None


def _handle(job: LocalJob) -> RunHandle:
    return RunHandle(launcher=LocalLauncher.name, name=job.name, job_uri=job.job_uri, uid=job.uid)


def _run_id(job_uri: str) -> str | None:
    found = _RUN_OF_URI.search(job_uri)
    return found.group(1) if found else None


def _since(directory: JobDirectory, job: LocalJob, phase: Phase) -> str:
    """When the phase began, as far as files tell: the last exit for an ended job, else when it was submitted."""
    exits = [when for node in directory.nodes(job) if (when := written_at(node.path("exit")))]
    return max(exits) if phase.is_terminal and exits else job.created_at
