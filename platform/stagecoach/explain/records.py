"""What was read of a run (`Facts`) and what is said of it (`Explanation`)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from stagecoach.constants import Phase
from stagecoach.contract.control import Hold, RunRequest
from stagecoach.contract.job import (
    AttemptEnd,
    AttemptStart,
    NodeJoined,
    Progress,
    RunRecord,
    StageManifest,
    Submission,
    SubmissionState,
)
from stagecoach.contract.launch import JobState
from stagecoach.contract.plan import WholeNumber
from stagecoach.contract.records import Record, Stored


class Cause(StrEnum):
    """Why a job is where it is. Stable: scripts read it from `explain --json`."""

    # before anything runs
    NO_STAGES = "no_stages"  # a run record that names no stage
    NEVER_SUBMITTED = "never_submitted"
    CLAIMED = "claimed"  # a submission was claimed, and whoever claimed it never confirmed that a launcher took it
    QUEUED = "queued"
    ADMITTED = "admitted"
    PAUSED = "paused"
    ENDED_BEFORE_START = "ended_before_start"  # the launcher says it ended; no attempt was claimed
    # alive
    WAITING_FOR_PEERS = "waiting_for_peers"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SILENT = "silent"  # no end is written and the heartbeat does not move
    SUPERVISOR_GONE = "supervisor_gone"  # no end is written and the cluster says that nothing runs
    # ended
    STOPPED = "stopped"  # by the platform, everything saved
    STOPPED_UNSAVED = "stopped_unsaved"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    HUNG = "hung"
    OUT_OF_MEMORY = "out_of_memory"
    PEER_LOST = "peer_lost"
    STORE_GONE = "store_gone"
    RENDEZVOUS_FAILED = "rendezvous_failed"
    FOUND_DEAD = "found_dead"
    BAD_CONFIG = "bad_config"
    BAD_DATA = "bad_data"
    INCOMPATIBLE_CHECKPOINT = "incompatible_checkpoint"
    DIVERGED = "diverged"
    NO_PROGRESS = "no_progress"
    OUT_OF_TIME = "out_of_time"
    TRAINED = "trained"  # the last attempt is done, stage.json is not written yet
    STAGE_FINISHED = "stage_finished"  # and the next stage is not started
    FINISHED = "finished"
    # cannot be read
    NEWER_FORMAT = "newer_format"
    UNREADABLE = "unreadable"


class Next(StrEnum):
    """What happens next, or what somebody has to do."""

    NOTHING = "nothing"  # it is finished, or was meant to end
    WAIT = "wait"  # it goes on by itself
    RESTART_IN_PLACE = "restart_in_place"  # the same supervisor starts attempt n + 1
    SUBMIT = "submit"  # nothing has been started
    RESUBMIT = "resubmit"  # nothing runs; submitted again it goes on from the last commit
    CHANGE = "change"  # never retried as it is: somebody changes something first
    LOOK = "look"  # a person looks: it may be dead or hung
    UNPAUSE = "unpause"
    UPGRADE = "upgrade"  # use a later Stagecoach
    REPAIR = "repair"  # an object of the run folder was edited or damaged


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable(Record):
    """An object that is there and cannot be read."""

    uri: str
    says: str
    newer: bool = False
    attempt: int | None = None  # of which attempt it is


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmissionFacts:
    """A claim, and the newest entry of its intent log."""

    claim: Submission
    state: SubmissionState | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFacts:
    """One attempt. `nodes` and `progress` are read of the newest attempt only."""

    number: int
    start: AttemptStart | None = None
    end: AttemptEnd | None = None
    nodes: tuple[NodeJoined, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """Whether the newest attempt's counter moved while the reader watched. None: not watched, or there is no counter yet."""

    moved: bool | None = None
    watched_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterFacts:
    """What a launcher said. `state` is None when it does not know the job, or could not be asked (`unreachable` says why)."""

    view: str
    state: JobState | None = None
    unreachable: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFacts:
    """One job folder: a stage's, or any other job's."""

    name: str
    uri: str
    is_stage: bool
    submissions: tuple[SubmissionFacts, ...] = ()
    attempts: tuple[AttemptFacts, ...] = ()
    manifest: StageManifest | None = None
    committed_step: int | None = None  # by listing, while an attempt is live; None: it has ended, or the job keeps no checkpoints
    heartbeat: Heartbeat = Heartbeat()
    cluster: ClusterFacts | None = None
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def is_touched(self) -> bool:
        """True once anything was submitted or started."""
        return bool(self.submissions or self.attempts or self.unreadable)

    @property
    def launcher_state(self) -> JobState | None:
        """What the launcher says now, or what was its last word when somebody noted that the newest submission has ended."""
        if self.cluster is not None and self.cluster.state is not None:
            return self.cluster.state
        noted = self.submissions[-1].state if self.submissions else None
        if noted is None or noted.state != "ended":
            return None
        phase = Phase(noted.phase) if noted.phase in set(Phase) else Phase.FAILED
        return JobState(phase=phase, reason=noted.reason or "", exit_code=noted.exit_code)

    @property
    def is_live(self) -> bool:
        """True when the newest attempt has no end: only then is there a heartbeat to watch."""
        return bool(self.attempts) and self.attempts[-1].end is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A run with its stages, or one job that belongs to none (`run` is None then)."""

    name: str
    uri: str
    run: RunRecord | None = None
    jobs: tuple[JobFacts, ...] = ()
    hold: Hold | None = None
    request: RunRequest | None = None  # how the run was last asked for: None where nothing keeps that, and `resume` cannot go on with it
    unreadable: tuple[Unreadable, ...] = ()

    def is_asked(self, job: JobFacts) -> bool:
        """False for a stage that nobody asked for, and nothing was done for."""
        stages = self.request.stages if self.request is not None else ()
        return not stages or job.name in stages or job.is_touched or job.manifest is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Previous(Record):
    """How the attempt before the newest ended."""

    attempt: int
    cause: Cause
    step: int
    steps_lost: int
    rank: int | None = None
    node: str | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held(Record):
    """Somebody paused or cancelled the run: `control/{kind}.json`."""

    kind: Literal["pause", "cancel"]
    by: str = ""
    at: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation(Stored):
    """The answer of `stagecoach explain`: exact facts, and one sentence made of them. What is unknown is null."""

    FORMAT = "stagecoach.explanation"

    run: str
    stage: str | None = None  # null for a job that is no stage
    job_uri: str | None = None
    cause: Cause
    next: Next
    sentence: str = ""
    submission: WholeNumber | None = None
    attempt: WholeNumber | None = None
    attempts: WholeNumber = 0  # claimed so far
    step: WholeNumber | None = None  # the last one seen
    steps: WholeNumber | None = None
    committed_step: WholeNumber | None = None  # the last one that is safe
    steps_lost: WholeNumber | None = None  # by the newest attempt
    steps_lost_total: WholeNumber = 0  # by all attempts
    without_progress: WholeNumber = 0  # counted attempts in a row that committed nothing new
    rank: int | None = None  # of the first failure
    node: str | None = None  # the machine of that rank
    exit_code: int | None = None
    message: str = ""
    stack: str | None = None  # of a hung rank
    phase: str | None = None  # of the rank that reports progress
    eta_s: float | None = None
    nodes: WholeNumber | None = None
    missing_nodes: tuple[int, ...] = ()  # indexes that have not joined
    heartbeat_moved: bool | None = None
    watched_s: float = 0.0
    previous: Previous | None = None
    held: Held | None = None
    next_stage: str | None = None
    waits_for: str | None = None  # the stage that comes before this one and is not finished
    can_resume: bool = False  # `stagecoach resume` knows how the run was asked for
    launcher: str | None = None
    cluster_phase: str | None = None
    cluster_reason: str = ""
    read_from: tuple[str, ...] = ("bucket",)
    unreadable: tuple[Unreadable, ...] = ()
