"""Writes a job's folder as launchers and supervisors would, for tests of what reads it. Every object goes through the ledger."""

from dataclasses import dataclass
from typing import Any

from stagecoach.contract.job import (
    AttemptEnd,
    AttemptStart,
    JobRecord,
    NodeJoined,
    ObjectRef,
    Progress,
    RunRecord,
    StageManifest,
    Submission,
    SubmissionState,
)
from stagecoach.contract.ledger import JobFolder, Runs

AT = "2026-11-03T10:00:00Z"
IDENTITY = "ab" * 32


def write_run(root: str, run_id: str, *stages: str) -> list["JobBook"]:
    """A run with these stages; returns a book for each stage's folder."""
    runs = Runs.open(root)
    run = RunRecord(run_id=run_id, recipe="mm1_tiny", pipeline="mm1_tiny", stages=stages, created_at=AT)
    runs.create(run)
    return [JobBook(runs.stage(run, stage), name=f"{run_id}-{stage}") for stage in stages]


def write_job(root: str, name: str) -> "JobBook":
    """A job that belongs to no run."""
    book = JobBook(Runs.open(root).job(name), name=name)
    book.folder.write_job(JobRecord(name=name, kind="test", identity=IDENTITY, created_at=AT))
    return book


@dataclass
class JobBook:
    """One job's folder; each method writes one object with what a test cares for, the rest has ordinary values."""

    folder: JobFolder
    name: str
    nodes: int = 1
    ranks_per_node: int = 2

    def claim(self, submission: int = 1, *, launcher: str = "local") -> None:
        self.folder.claim_submission(
            Submission(
                submission=submission, name=f"{self.name}-s{submission}", launcher=launcher, spec_digest="cd" * 32, spec={}, created_at=AT
            )
        )

    def submit(self, submission: int = 1, *, launcher: str = "local") -> None:
        """Claims it and notes that the launcher took it."""
        self.claim(submission, launcher=launcher)
        self.folder.write_submission_state(SubmissionState(submission=submission, state="submitted", handle="4711", at=AT))

    def end_submission(self, submission: int, **facts: Any) -> None:
        self.folder.write_submission_state(SubmissionState(submission=submission, state="ended", handle="4711", at=AT, **facts))

    def start(self, attempt: int, *, submission: int = 1, joined: int | None = None, **facts: Any) -> None:
        """Claims an attempt; `joined` nodes (all, when None) have joined it on machines gpu-0, gpu-1, ..."""
        ordinary: dict[str, Any] = {"why": "first" if attempt == 1 else "restart", "leader_host": "gpu-0", "leader_port": 29400}
        self.folder.claim_attempt(
            AttemptStart(
                attempt=attempt,
                submission=submission,
                nonce=f"nonce-{attempt}",
                nodes=self.nodes,
                ranks_per_node=self.ranks_per_node,
                world_size=self.nodes * self.ranks_per_node,
                layout="ef" * 32,
                identity=IDENTITY,
                started_at=AT,
                **ordinary | facts,
            )
        )
        for node in range(self.nodes if joined is None else joined):
            machine = f"gpu-{node}"
            self.folder.join_node(NodeJoined(attempt=attempt, node=node, host=machine, machine=machine, pid=100 + node, joined_at=AT))

    def progress(self, attempt: int, *, step: int, heartbeat: int = 1, steps: int = 200, phase: str = "train", **facts: Any) -> None:
        self.folder.write_progress(
            Progress(attempt=attempt, heartbeat=heartbeat, step=step, steps=steps, phase=phase, at=AT, **facts),
        )

    def end(self, attempt: int, kind: Any, exit_code: int, **facts: Any) -> None:
        self.folder.end_attempt(
            AttemptEnd(attempt=attempt, kind=kind, exit_code=exit_code, ended_at=AT, **{"written_by": "leader"} | facts)
        )

    def finish(self, *, step: int, attempts: int = 1, run_id: str = "r1", stage: str = "pretrain") -> None:
        """Writes stage.json."""
        self.folder.write_stage(
            StageManifest(
                run_id=run_id,
                stage=stage,
                identity=IDENTITY,
                checkpoint=ObjectRef(uri=f"{self.folder.uri}/checkpoints/step-{step:08d}/attempt-{attempts}", digest="12" * 32),
                weights_digest="34" * 32,
                steps=step,
                tokens=step * 1024,
                attempts=attempts,
                finished_at=AT,
            )
        )
