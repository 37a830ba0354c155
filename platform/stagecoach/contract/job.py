"""The objects of a job's folder (architecture.md section 2, interfaces.md sections 4, 6, 7). `ledger.py` reads and writes them.

Times (`…_at`) are UTC ISO 8601 for people; no decision is ever taken from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stagecoach.contract.plan import Count, WholeNumber
from stagecoach.contract.records import Record, Stored

Why = Literal["first", "restart", "resubmitted", "preempted", "retry"]  # why this attempt was started
Ending = Literal[
    "done", "stopped", "preempted", "cancelled", "crashed", "hung", "peer_lost", "store_gone", "out_of_memory",
    "bad_config", "bad_data", "incompatible_checkpoint", "diverged", "no_progress", "found_dead", "rendezvous_failed",
    "out_of_time",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord(Stored):
    """`run.json`: what a run is. Written once, before anything else of the run."""

    FORMAT = "stagecoach.run"

    run_id: str
    recipe: str
    pipeline: str
    stages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # dataset name -> {uri, fingerprint}
    versions: Mapping[str, str] = field(default_factory=dict)
    forked_from: str | None = None  # URI of a checkpoint of another run
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord(Stored):
    """`job.json` of a job that is no stage (preflight, conversion, evaluation): what was asked. A stage has `plan.json`."""

    FORMAT = "stagecoach.job"

    name: str
    kind: Literal["preflight", "conversion", "evaluation", "test"]
    identity: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission(Stored):
    """`submissions/{k}.json`: claimed by conditional create before a launcher is asked."""

    FORMAT = "stagecoach.submission"

    submission: Count
    name: str  # of the cluster object or local job
    launcher: str
    spec_digest: str  # SHA-256 over the LaunchSpec
    spec: Mapping[str, Any]
    created_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmissionState(Stored):
    """`submissions/{k}.submitted.json` and `submissions/{k}.ended.json`: the intent log goes PLANNED (the claim) -> submitted -> ended."""

    FORMAT = "stagecoach.submission-state"

    submission: Count
    state: Literal["submitted", "ended"]
    handle: str  # what the launcher knows it by: uid of the object, or pid and start time
    phase: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStart(Stored):
    """`attempts/{n}/start.json`: the fencing token, claimed by conditional create by node 0's supervisor."""

    FORMAT = "stagecoach.attempt-start"

    attempt: Count
    submission: WholeNumber  # 0: started by hand
    leader_host: str
    leader_port: Count
    nonce: str  # a peer goes on only if the leader at that address answers with it
    nodes: Count
    ranks_per_node: Count
    world_size: Count
    layout: str  # layout hash
    identity: str
    why: Why
    resumed_from_step: WholeNumber = 0  # commits of earlier attempts past this step are never read
    resumed_from: str | None = None  # URI of the checkpoint
    versions: Mapping[str, str] = field(default_factory=dict)
    started_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeJoined(Stored):
    """`attempts/{n}/nodes/{i}.json`: who joined, on which machine."""

    FORMAT = "stagecoach.node"

    attempt: Count
    node: WholeNumber
    host: str
    machine: str  # the cluster node's name, or the host's
    pid: int
    devices: tuple[str, ...] = ()
    joined_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress(Stored):
    """`attempts/{n}/progress.json`, at least every 2 s while it moves. Liveness is `heartbeat` moving on the reader's own clock."""

    FORMAT = "stagecoach.progress"

    attempt: Count
    heartbeat: WholeNumber
    step: WholeNumber
    steps: WholeNumber
    phase: str
    tokens: WholeNumber = 0
    images: WholeNumber = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    eta_s: float | None = None
    committed_step: WholeNumber = 0
    seconds: Mapping[str, float] = field(default_factory=dict)  # by bucket: init, restore, data_wait, compute, checkpoint_stall, evaluation
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOutcome(Stored):
    """`outcome-{rank}.json` in the node's local folder, and inside `end.json`: how one rank ended. No outcome: it crashed."""

    FORMAT = "stagecoach.outcome"

    rank: WholeNumber
    kind: Ending
    exit_code: int  # the contract's code it wants
    step: WholeNumber = 0
    committed_step: WholeNumber = 0
    message: str = ""
    monotonic_s: float = 0.0  # when, on its machine's monotonic clock: puts the outcomes of one node in order


@dataclass(frozen=True, kw_only=True, slots=True)
class RankExit(Record):
    """What the supervisor saw of one rank."""

    rank: WholeNumber
    returncode: int | None = None  # negative: killed by that signal
    kind: Ending | None = None
    message: str = ""
    stack: str | None = None  # of a hung rank, taken from outside


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptEnd(Stored):
    """`attempts/{n}/end.json`: why it stopped. Created once, by the leader or by whoever finds it dead."""

    FORMAT = "stagecoach.attempt-end"

    attempt: Count
    kind: Ending
    exit_code: int
    first_failed_rank: int | None = None
    first_failed_node: str | None = None  # the machine it ran on
    message: str = ""
    step: WholeNumber = 0  # the last step seen
    committed_step: WholeNumber = 0  # the last one that is safe
    steps_lost: WholeNumber = 0
    ranks: tuple[RankExit, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    written_by: Literal["leader", "successor", "controller"]
    restarts_in_place: bool = False  # the same supervisor goes on with attempt n + 1
    ended_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRef(Record):
    """A thing in the bucket and the digest that proves it."""

    uri: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult(Stored):
    """`result.json`: what the trainer leaves when the last step is committed; `stage.json` is made from it. Published again by any
    attempt that finds nothing left to do."""

    FORMAT = "stagecoach.train-result"

    attempt: Count
    step: WholeNumber
    checkpoint: ObjectRef  # the committed folder, and the SHA-256 of its MANIFEST.json
    weights_digest: str
    tokens: WholeNumber
    images: WholeNumber = 0
    metrics: Mapping[str, float] = field(default_factory=dict)  # loss, validation/{category}, ...
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # tokenizer, model, data


@dataclass(frozen=True, kw_only=True, slots=True)
class StageManifest(Stored):
    """`stage.json`: the stage is done. Written last; what the next stage verifies before any GPU is asked for."""

    FORMAT = "stagecoach.stage"

    run_id: str
    stage: str
    identity: str
    parent: ObjectRef | None = None
    checkpoint: ObjectRef
    weights_digest: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # tokenizer, model, data
    steps: WholeNumber
    tokens: WholeNumber
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, str] = field(default_factory=dict)  # suite -> URI
    attempts: WholeNumber
    finished_at: str
