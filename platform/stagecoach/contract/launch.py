"""What any job asks of a launcher (interfaces.md section 4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, Protocol, runtime_checkable

from stagecoach.constants import Phase
from stagecoach.contract.plan import Count, Resources, WholeNumber
from stagecoach.contract.records import Record, canonical_json, to_plain
from stagecoach.errors import StagecoachError


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretRef(Record):
    """An environment variable whose value is a key of a cluster secret. Values never appear in a spec."""

    variable: str
    secret: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology(Record):
    """How near each other a gang's nodes must be, in the cluster's own level (a node label)."""

    mode: Literal["required", "preferred", "unconstrained"]
    level: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSpec(Record):
    """Any job: a stage, an evaluation, a preflight, a conversion."""

    job_uri: str
    name: str
    identity: str
    entrypoint: str  # "stagecoach_workloads.preflight:main"
    nodes: Count
    ranks_per_node: Count
    resources: Resources = Resources()
    image: str | None = None
    code_uri: str | None = None
    grace_s: Count = 30
    max_seconds: Count | None = None  # of running, since a supervisor started; then the ranks may save, and the job ends with 45
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    queue: str | None = None
    priority: str | None = None
    topology: Topology | None = None
    excluded_nodes: tuple[str, ...] = ()
    submission: WholeNumber = 0

    @property
    def digest(self) -> str:
        """SHA-256 over all of it: two specs of one name are the same job only when these are equal."""
        return sha256(canonical_json(to_plain(self))).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle(Record):
    """A job that a launcher knows."""

    launcher: str
    name: str
    job_uri: str
    uid: str  # differs between two objects that had the same name


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState(Record):
    """What a launcher says of a job. A preemption is a phase, never an error."""

    phase: Phase
    reason: str = ""
    since: str | None = None
    attempt: WholeNumber | None = None
    restarts: WholeNumber = 0
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine(Record):
    """One line of one rank."""

    attempt: int
    rank: int  # -1: a supervisor
    text: str
    node: int = 0  # whose supervisor, where the log tells them apart


class NameTaken(StagecoachError):
    """The name exists with another spec digest: another job runs under it."""


class Launcher(Protocol):
    """One contract suite runs over all of them and over the fake."""

    name: str

    def submit(self, spec: LaunchSpec) -> RunHandle:
        """Create or attach. Raises NameTaken when the name exists with another spec digest."""
        ...

    def attach(self, name: str) -> RunHandle | None:
        """The job of that name, or None."""
        ...

    def describe(self, handle: RunHandle) -> JobState:
        """Never raises for a preemption."""
        ...

    def logs(self, handle: RunHandle, *, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """All ranks and attempts unless one is named; rank -1 is the supervisor."""
        ...

    def cancel(self, handle: RunHandle) -> None:
        """Idempotent; returns when no process of the job is left or the cluster has taken the order."""
        ...

    def delete(self, handle: RunHandle) -> None:
        """Cancels, then forgets the job. Idempotent. The bucket is untouched."""
        ...

    def list(self, *, run_id: str | None = None) -> list[RunHandle]:
        """Jobs known, of one run or of all."""
        ...


@runtime_checkable
class PausingLauncher(Launcher, Protocol):
    """One that can take a job's place away and give it back, the same job. Others cancel, and the next submission goes on."""

    def pause(self, handle: RunHandle, *, because: str = "") -> None:
        """As cancel, but the job is PAUSED and not over. Idempotent; a job that is over or cancelled stays so."""
        ...

    def unpause(self, handle: RunHandle) -> None:
        """It goes on from what it saved, once it has a place. Idempotent. Raises ConfigError for a job that was cancelled."""
        ...
