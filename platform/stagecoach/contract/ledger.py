"""Reading and writing the objects of a run and of its jobs (architecture.md section 2). The bucket is the memory.

`Runs` is the root; `JobFolder` is one job's folder, a stage's or any other's. Claims (a submission's number, an attempt's) are conditional
creates: whoever creates the object *is* it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from stagecoach.contract.job import (
    AttemptEnd,
    AttemptStart,
    JobRecord,
    NodeJoined,
    Progress,
    RunRecord,
    StageManifest,
    Submission,
    SubmissionState,
    TrainResult,
)
from stagecoach.contract.names import stage_folder, whole_number
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import Stored, decode, encode
from stagecoach.storage import NotFound, Store, StoreSettings, open_store

S = TypeVar("S", bound=Stored)

SUPERVISOR = "supervisor"  # beside rank-0, rank-1, ... in logs/ and events/


@dataclass(frozen=True)
class JobFolder:
    """One job: `{root}/runs/{run_id}/stages/{NN-name}/` or `{root}/jobs/{name}/`."""

    store: Store

    @classmethod
    def open(cls, uri: str, *, settings: StoreSettings | None = None) -> "JobFolder":
        """The job at `uri`; nothing is read or written yet."""
        return cls(open_store(uri, settings=settings))

    @property
    def uri(self) -> str:
        return self.store.uri

    # --- what was asked

    def write_plan(self, plan: StagePlan) -> bool:
        """Freezes the plan; False when one was there (read it and compare identities)."""
        return self._create("plan.json", plan)

    def replace_plan(self, plan: StagePlan) -> None:
        """The same identity with another layout, for the attempts to come. Only while no submission is open."""
        self.store.publish("plan.json", encode(plan))

    def plan(self) -> StagePlan | None:
        return self._read("plan.json", StagePlan)

    def write_job(self, record: JobRecord) -> bool:
        """Freezes what a job that is no stage was asked; False when it was there."""
        return self._create("job.json", record)

    def job(self) -> JobRecord | None:
        return self._read("job.json", JobRecord)

    # --- submissions

    def claim_submission(self, submission: Submission) -> bool:
        """True for the one caller who is submission k from now on."""
        return self._create(f"submissions/{submission.submission}.json", submission)

    def submission(self, number: int) -> Submission | None:
        """Submission k, or None when it was never claimed."""
        return self._read(f"submissions/{number}.json", Submission)

    def submissions(self) -> list[Submission]:
        """In order of their numbers."""
        return list(self._numbered("submissions", "", Submission))

    def write_submission_state(self, state: SubmissionState) -> bool:
        """The intent log's next entry; False when it was there (another watcher wrote it)."""
        return self._create(f"submissions/{state.submission}.{state.state}.json", state)

    def submission_state(self, submission: int) -> SubmissionState | None:
        """The newest entry of submission k: ended, else submitted, else None (only claimed)."""
        return self._read(f"submissions/{submission}.ended.json", SubmissionState) or self._read(
            f"submissions/{submission}.submitted.json", SubmissionState
        )

    # --- attempts

    def claim_attempt(self, start: AttemptStart) -> bool:
        """True for the one supervisor that is attempt n from now on: the fencing token."""
        return self._create(f"attempts/{start.attempt}/start.json", start)

    def attempt_numbers(self) -> list[int]:
        """Claimed attempts, in order."""
        return sorted(number for name in self.store.list_folders("attempts") if (number := whole_number(name)) is not None)

    def attempt_start(self, attempt: int) -> AttemptStart | None:
        return self._read(f"attempts/{attempt}/start.json", AttemptStart)

    def newest_attempt(self) -> AttemptStart | None:
        """The start of the highest attempt, or None before the first."""
        numbers = self.attempt_numbers()
        return self.attempt_start(numbers[-1]) if numbers else None

    def join_node(self, node: NodeJoined) -> bool:
        return self._create(f"attempts/{node.attempt}/nodes/{node.node}.json", node)

    def nodes(self, attempt: int) -> list[NodeJoined]:
        """In order of their index."""
        return list(self._numbered(f"attempts/{attempt}/nodes", "", NodeJoined))

    def write_progress(self, progress: Progress) -> None:
        """Replaces the last heartbeat."""
        self.store.publish(f"attempts/{progress.attempt}/progress.json", encode(progress))

    def progress(self, attempt: int) -> Progress | None:
        return self._read(f"attempts/{attempt}/progress.json", Progress)

    def end_attempt(self, end: AttemptEnd) -> bool:
        """False when it was ended already: the first word stands."""
        return self._create(f"attempts/{end.attempt}/end.json", end)

    def attempt_end(self, attempt: int) -> AttemptEnd | None:
        return self._read(f"attempts/{attempt}/end.json", AttemptEnd)

    # --- the stage

    def write_result(self, result: TrainResult) -> None:
        """What training came to. Replaces an earlier attempt's word."""
        self.store.publish("result.json", encode(result))

    def result(self) -> TrainResult | None:
        """None until training is done."""
        return self._read("result.json", TrainResult)

    def write_stage(self, manifest: StageManifest) -> bool:
        """The job is done. False when it was said before."""
        return self._create("stage.json", manifest)

    def stage(self) -> StageManifest | None:
        return self._read("stage.json", StageManifest)

    # --- segments: objects cannot be appended to, so events and logs are cut

    def write_segment(self, kind: str, attempt: int, source: str, segment: int, body: bytes) -> None:
        """`{kind}/attempt-{n}/{source}/{segment:06d}`; kind is `events` or `logs`, source `rank-{r}` or `supervisor`."""
        self.store.publish(f"{kind}/attempt-{attempt}/{source}/{segment:06d}", body)

    def write_tensorboard(self, attempt: int, name: str, body: bytes) -> None:
        """Replaces `tensorboard/attempt-{n}/{name}`, one of TensorBoard's event files."""
        self.store.publish(f"tensorboard/attempt-{attempt}/{name}", body)

    def sources(self, kind: str, attempt: int) -> list[str]:
        """Who wrote segments in this attempt."""
        return self.store.list_folders(f"{kind}/attempt-{attempt}")

    def segments(self, kind: str, attempt: int, source: str) -> list[str]:
        """Keys in order; read them with `store.read`."""
        return [info.key for info in self.store.list(f"{kind}/attempt-{attempt}/{source}")]

    def lines(self, kind: str, attempt: int, source: str) -> Iterator[str]:
        """All lines of one source in one attempt, across segments (a line may be cut by a segment's end)."""
        rest = b""
        for key in self.segments(kind, attempt, source):
            *whole, rest = (rest + self.store.read(key)).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)
        if rest:
            yield rest.decode("utf-8", "replace")

    def events(self, attempt: int, source: str) -> Iterator[Mapping[str, Any]]:
        """Events of one rank in one attempt; a torn last line of a killed writer is passed over, as is what is no event."""
        for line in self.lines("events", attempt, source):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event

    # --- inside

    def _create(self, key: str, record: Stored) -> bool:
        return self.store.create_if_absent(key, encode(record))

    def _read(self, key: str, kind: type[S]) -> S | None:
        try:
            body = self.store.read(key)
        except NotFound:
            return None
        return decode(kind, body, uri=self.store.uri_of(key))

    def _numbered(self, prefix: str, suffix: str, kind: type[S]) -> Iterable[S]:
        names = [info.key.removeprefix(prefix + "/") for info in self.store.list(prefix)]
        numbers = sorted(number for name in names if (number := whole_number(name.removesuffix(f"{suffix}.json"))) is not None)
        found = (self._read(f"{prefix}/{number}{suffix}.json", kind) for number in numbers)
        return [record for record in found if record is not None]


@dataclass(frozen=True)
class Runs:
    """The root: every run and every job that belongs to none."""

    store: Store

    @classmethod
    def open(cls, root: str, *, settings: StoreSettings | None = None) -> "Runs":
        return cls(open_store(root, settings=settings))

    def create(self, run: RunRecord) -> bool:
        """False when a run of that id exists: read it and compare."""
        return self.store.create_if_absent(f"runs/{run.run_id}/run.json", encode(run))

    def ids(self) -> list[str]:
        """Run ids, sorted by name. Their order in time is in `run.json`."""
        return self.store.list_folders("runs")

    def run(self, run_id: str) -> RunRecord | None:
        """None when there is no run of that id."""
        if "/" in run_id or run_id.strip() in ("", ".", ".."):  # no such key can be
            return None
        key = f"runs/{run_id}/run.json"
        try:
            body = self.store.read(key)
        except NotFound:
            return None
        return decode(RunRecord, body, uri=self.store.uri_of(key))

    def stage(self, run: RunRecord, stage: str) -> JobFolder:
        """The folder of one stage. Raises ValueError when the run has no such stage."""
        return JobFolder(self.store.child(f"runs/{run.run_id}/stages/{stage_folder(run.stages.index(stage), stage)}"))

    def job_names(self) -> list[str]:
        """Jobs that belong to no run: preflights, conversions."""
        return self.store.list_folders("jobs")

    def job(self, name: str) -> JobFolder:
        return JobFolder(self.store.child(f"jobs/{name}"))
