"""A pipeline's world for crash tests: jobs that train at once, and a counter that lets the caller die at its n-th call to the outside."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.listing import MANIFEST
from stagecoach.constants import Phase
from stagecoach.contract.evaluation import SCORES, EvaluationSettings, Score, Scores
from stagecoach.contract.identity import identity_fields
from stagecoach.contract.job import ObjectRef, Progress, TrainResult
from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import Parent, StagePlan, Steps
from stagecoach.contract.records import canonical_json, encode, validate
from stagecoach.storage import Store
from stagecoach.testing.builders import attempt_end, attempt_start
from stagecoach.testing.checkpoints import write_checkpoint
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher

DATASETS = ("captions", "sft_general")  # what `made.make_corpus(only=...)` must make for them
TOY_SETTINGS = (
    *(f"{stage}.{setting}" for stage in ("pretrain", "sft") for setting in ("steps=4", "schedule.warmup_steps=1", "evaluation.suites=[]")),
    "pretrain.data.mixture.weights.captions=1.0",
    *(f"pretrain.data.mixture.weights.{name}=0.0" for name in ("captions_synthetic", "interleaved", "text")),
    "sft.data.mixture.weights.sft_general=1.0",
    *(f"sft.data.mixture.weights.{name}=0.0" for name in ("sft_text_rich", "sft_text")),
)  # for mm1_tiny
STORE_CALLS = ("read", "stat", "exists", "list", "list_folders", "publish", "create_if_absent", "delete")
LAUNCHER_CALLS = ("submit", "attach", "describe")


def train_at_once(folder: JobFolder, *, attempt: int = 1) -> None:
    """What a job that runs to its end leaves."""
    plan = folder.plan()
    assert plan is not None
    steps = steps_of(plan)
    folder.claim_attempt(attempt_start(attempt=attempt))
    ref = write_checkpoint(folder, steps, attempt)
    digest = hashlib.sha256(folder.store.read(f"{ref.key}/{MANIFEST}")).hexdigest()
    folder.write_result(
        TrainResult(
            attempt=attempt, step=steps, checkpoint=ObjectRef(uri=ref.uri, digest=digest), weights_digest=weights_of(plan), tokens=100,
            metrics={"loss": 1.5},
        )
    )  # fmt: skip
    folder.write_progress(
        Progress(attempt=attempt, heartbeat=1, step=steps, steps=steps, phase="done", committed_step=steps, loss=1.5, at="Monday")
    )
    folder.end_attempt(attempt_end(attempt=attempt, kind="done", exit_code=0, step=steps, committed_step=steps))


def answer_at_once(folder: JobFolder, settings: EvaluationSettings) -> None:
    """What an evaluation that runs to its end leaves."""
    folder.claim_attempt(attempt_start(attempt=1))
    score = Score(category="colour", metric="exact", samples=4, value=0.5, low=0.0, high=1.0, correct=2)
    scores = Scores(settings=settings, scores=(score,), answers=4, finished_at="Monday")
    folder.store.create_if_absent(SCORES, encode(scores))
    folder.end_attempt(attempt_end(attempt=1, kind="done", exit_code=0, step=0, committed_step=0))


def work_at_once(folder: JobFolder) -> None:
    """Whatever the folder's job is."""
    job = folder.job()
    if job is not None and job.kind == "evaluation":
        answer_at_once(folder, validate(EvaluationSettings, dict(job.settings), where="settings"))
    else:
        train_at_once(folder)


def weights_of(plan: StagePlan) -> str:
    """What would be learned: follows from the plan and the parent's weights, wherever both lie."""
    fields, before = identity_fields(plan), ""
    if isinstance(plan.init, Parent):
        assert plan.init.checkpoint is not None
        parent = checkpoint_at(plan.init.checkpoint)[0].result()
        assert parent is not None
        fields["init"], before = {"stage": plan.init.stage}, parent.weights_digest
    return hashlib.sha256(canonical_json(fields) + before.encode()).hexdigest()


def steps_of(plan: StagePlan) -> int:
    return plan.duration.steps if isinstance(plan.duration, Steps) else 1


@dataclass
class Counter:
    """Counts calls to the outside. The caller dies before call `die_before`, or after call `die_after`."""

    die_before: int = 0
    die_after: int = 0
    count: int = 0
    names: list[str] = field(default_factory=list)
    is_job: bool = False  # what the job itself does is not the caller's

    def call(self, name: str, action: Callable[[], Any]) -> Any:
        if self.is_job:
            return action()
        self.count += 1
        number = self.count
        self.names.append(name)
        if number == self.die_before:
            raise Crashed(f"before {name}")
        done = action()
        if number == self.die_after:
            raise Crashed(f"after {name}")
        return done


class TrainingLauncher(FakeLauncher):
    """Jobs train, or answer, when they are first looked at. Each call is a crash point of `counter`."""

    def __init__(self, cluster: FakeCluster, counter: Counter) -> None:
        super().__init__(cluster)
        self.counter = counter

    def submit(self, spec: LaunchSpec) -> RunHandle:
        handle: RunHandle = self.counter.call("launcher.submit", lambda: FakeLauncher.submit(self, spec))
        return handle

    def attach(self, name: str) -> RunHandle | None:
        handle: RunHandle | None = self.counter.call("launcher.attach", lambda: FakeLauncher.attach(self, name))
        return handle

    def describe(self, handle: RunHandle) -> JobState:
        state: JobState = self.counter.call("launcher.describe", lambda: self._describe(handle))
        return state

    def _describe(self, handle: RunHandle) -> JobState:
        state = FakeLauncher.describe(self, handle)
        if state.phase == Phase.RUNNING:
            self.counter.is_job = True
            work_at_once(JobFolder.open(handle.job_uri))
            self.counter.is_job = False
            self.cluster.finish(handle.name, 0)
        return state


@contextmanager
def counted_store(counter: Counter) -> Iterator[None]:
    """Within, each call to a bucket is a crash point."""

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Store, *args: Any, **kwargs: Any) -> Any:
            key = args[0] if args else ""
            return counter.call(f"{name} {key}", lambda: real(self, *args, **kwargs))

        return call

    patches = [patch.object(Store, name, counting(name, getattr(Store, name))) for name in STORE_CALLS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
