"""What one supervisor has for its whole life: its job, its port, its tree of processes, its log."""

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from stagecoach.constants import ExitCode
from stagecoach.contract.job import Progress
from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.contract.tree import SHM_LIST
from stagecoach.errors import ConfigError
from stagecoach.log import logger
from stagecoach.supervisor.agents import Foretold, WarmAgents
from stagecoach.supervisor.code import python_path
from stagecoach.supervisor.http import Request, Response
from stagecoach.supervisor.logs import Shipper, SupervisorLog, Tee
from stagecoach.supervisor.metrics import CONTENT_TYPE, build_registry, render
from stagecoach.supervisor.outcome import Verdict
from stagecoach.supervisor.processes import Reaper, kill_descendants, remove_shm
from stagecoach.supervisor.rendezvous import Leader
from stagecoach.supervisor.settings import SupervisorSettings
from stagecoach.supervisor.tensorboard import TensorBoardSync


@dataclass
class Node:
    """Assembled once by `main`. `stop` is set by SIGTERM."""

    settings: SupervisorSettings
    job: JobFolder
    spec: LaunchSpec
    folder: Path
    token: str
    agents: WarmAgents
    shipper: Shipper
    tee: Tee
    log: SupervisorLog
    tensorboard: TensorBoardSync
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stopped_at: list[float] = field(default_factory=list)  # the moment it was, on the monotonic clock
    is_out_of_time: bool = False  # it was not the platform that set `stop`, but the launch spec's max_seconds
    port: int = 0
    code: Path | None = None  # the researcher's own, unpacked
    leader: Leader | None = None  # of the attempt that runs, on node 0
    progress: Progress | None = None
    heartbeat_age_s: float = 0.0
    shm: set[str] = field(default_factory=set)
    reaper: Reaper = field(default_factory=Reaper)
    _sweeper: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self._registry = build_registry(lambda: (self.progress, self.heartbeat_age_s))

    async def answer(self, request: Request) -> Response:
        """The port: /metrics, /healthz, /rendezvous."""
        if request.path == "/rendezvous":
            return self.leader.handle(request) if self.leader is not None else Response(503, b"no attempt runs here\n")
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET only\n")
        if request.path == "/metrics":
            return Response(200, render(self._registry), CONTENT_TYPE)
        if request.path == "/healthz":
            return Response(200, b"ok\n")
        return Response(404, b"here are /metrics, /healthz and /rendezvous\n")

    def keep_sweeper(self) -> None:
        """Starts the sweeper, or another one where it was killed."""
        if self._sweeper is None or self._sweeper.poll() is not None:
            command = [sys.executable, "-m", "stagecoach.supervisor.sweeper", self.token, str(self.folder)]
            self._sweeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def python_path(self) -> str:
        """Ranks find the researcher's own code first; "" without such code."""
        return python_path(self.code, os.environ.get("PYTHONPATH", "")) if self.code is not None else ""

    def foretold(self, ranks_per_node: int) -> Foretold:
        """The ranks of the next attempt here, if it is like this one."""
        first = self.settings.node * ranks_per_node
        return Foretold(ranks=range(first, first + ranks_per_node), entrypoint=self.spec.entrypoint, python_path=self.python_path)

    @property
    def spared(self) -> set[int]:
        """Children that outlive an attempt."""
        return self.agents.pids | ({self._sweeper.pid} if self._sweeper is not None else set())

    def remember_shm(self, names: set[str]) -> None:
        """Notes shared memory in use, also for the sweeper."""
        if names - self.shm:
            self.shm |= names
            try:
                (self.folder / SHM_LIST).write_text("\n".join(sorted(self.shm)))
            except OSError as error:
                logger.debug(f"the list of shared memory cannot be written: {error}")

    def clear_shm(self) -> None:
        """Removes shared memory whose processes are dead."""
        remove_shm(self.shm)
        self.shm.clear()

    @property
    def stop_at(self) -> float | None:
        """When the platform asked to stop (monotonic)."""
        return self.stopped_at[0] if self.stopped_at else None

    def patience_s(self, usual_s: float) -> float:
        """How long something may wait for the bucket: as usual, but after SIGTERM never so long that we are killed before we exit."""
        if self.stop_at is None:
            return usual_s
        return max(0.5, min(usual_s, self.stop_at + self.settings.grace_s - 1.0 - time.monotonic()))

    def limit_time(self) -> None:
        """From now on the job has its spec's max_seconds. When they are over the ranks are asked to stop as the platform would ask them."""
        if self.spec.max_seconds is not None:
            asyncio.get_running_loop().call_later(self.spec.max_seconds, self._run_out_of_time)

    def _run_out_of_time(self) -> None:
        if not self.stop.is_set():
            self.is_out_of_time = True
            self.stopped_at.append(time.monotonic())
            self.stop.set()

    def as_ended(self, verdict: Verdict) -> Verdict:
        """The verdict, of a stop that came because the time is over: fatal, or the job would be started again for as long once more."""
        if not self.is_out_of_time or verdict.exit_code != ExitCode.STOPPED:
            return verdict
        message = f"its max_seconds={self.spec.max_seconds} of running are over ({verdict.message})"
        return replace(verdict, kind="out_of_time", exit_code=ExitCode.OUT_OF_TIME, message=message)

    async def kill_ranks(self) -> None:
        """No process of the attempt is left after this but those the kernel will not let go of."""
        stubborn = await asyncio.to_thread(kill_descendants, self.spared)
        if stubborn:
            logger.error(f"{stubborn} processes do not end on SIGKILL; they hang in the kernel (look for state D with ps)")


def tree_token(settings: SupervisorSettings) -> str:
    """Marks every process below this supervisor: the part before the dash is the job's node, the rest this supervisor's own."""
    return f"{tree_prefix(settings)}{secrets.token_hex(8)}"


def tree_prefix(settings: SupervisorSettings) -> str:
    """What the tokens of all supervisors of this job's node have in common."""
    return hashlib.sha256(f"{settings.job_uri}\n{settings.node}".encode()).hexdigest()[:16] + "-"


def build_node(settings: SupervisorSettings, job: JobFolder, spec: LaunchSpec) -> Node:
    """Everything that is made once. Raises ConfigError when there is no room for a folder."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="stagecoach-"))
    except OSError as error:
        where = tempfile.gettempdir()
        raise ConfigError(f"no folder can be made in {where} ({error.strerror}); point TMPDIR at a writable volume with room") from error
    token = tree_token(settings)
    shipper = Shipper(job)
    source = SUPERVISOR if settings.node == 0 else f"{SUPERVISOR}-{settings.node}"
    return Node(
        settings=settings,
        job=job,
        spec=spec,
        folder=folder,
        token=token,
        agents=WarmAgents(token),
        shipper=shipper,
        tee=Tee(),
        log=SupervisorLog(shipper, source),
        tensorboard=TensorBoardSync(job),
    )
