"""Which checkpoints a job has and which of them may be read: the one place of that rule (architecture.md section 8).

A checkpoint may be read when `COMMITTED` stands in its folder, nobody put `QUARANTINED` beside it, and it is not fenced: a commit of
attempt n counts only up to the step from which every later attempt resumed. Sorted by step, then attempt; never by time.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import Stored, encode, shortened
from stagecoach.storage import NotFound

FOLDER = "checkpoints"
COMMITTED, MANIFEST, QUARANTINED = "COMMITTED", "MANIFEST.json", "QUARANTINED"

_STEP = re.compile(r"step-([0-9]{8,18})")
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,17})")


class State(StrEnum):
    """What a reader makes of a checkpoint."""

    COMMITTED = "committed"  # may be read
    TORN = "torn"  # not committed: being written, or its writer was killed, or it is being removed
    QUARANTINED = "quarantined"  # found bad
    FENCED = "fenced"  # committed by an attempt that had a successor already
    DAMAGED = "damaged"  # committed, and not what was committed any more. This and the next: only where manifests are read
    NEWER_FORMAT = "newer format"  # fine, but this program is too old


@dataclass(frozen=True, kw_only=True)
class CheckpointRef:
    """Where one is. `key` is relative to the job's folder."""

    step: int
    attempt: int
    key: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One folder of a listing and why it may be read or not."""

    ref: CheckpointRef
    state: State
    reason: str  # "" of a committed one


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine(Stored):
    """`QUARANTINED`: why a checkpoint must not be read."""

    FORMAT = "stagecoach.quarantine"

    why: str
    at: str  # for people


def checkpoint_ref(job: JobFolder, step: int, attempt: int) -> CheckpointRef:
    """The checkpoint of that step and attempt, whether it is there or not."""
    key = f"{FOLDER}/step-{step:08d}/attempt-{attempt}"
    return CheckpointRef(step=step, attempt=attempt, key=key, uri=job.store.uri_of(key))


def folders(job: JobFolder) -> Iterator[CheckpointRef]:
    """Every checkpoint folder, newest first. Folders with other names are not ours and are passed over."""
    names = job.store.list_folders(FOLDER)
    steps = {int(match[1]) for name in names if (match := _STEP.fullmatch(name)) and name == f"step-{int(match[1]):08d}"}
    for step in sorted(steps, reverse=True):
        found = job.store.list_folders(f"{FOLDER}/step-{step:08d}")
        for attempt in sorted((int(match[1]) for name in found if (match := _ATTEMPT.fullmatch(name))), reverse=True):
            yield checkpoint_ref(job, step, attempt)


def list_checkpoints(job: JobFolder) -> Iterator[Checkpoint]:
    """Every checkpoint with its state, newest first; looked at one by one, so whoever stops early reads no more than needed."""
    fence = Fence(job)
    for ref in folders(job):
        yield _look_at(job, ref, fence)


def candidates(job: JobFolder) -> Iterator[CheckpointRef]:
    """Those that may be read, newest first. That their bytes are right is for the reader to verify."""
    return (found.ref for found in list_checkpoints(job) if found.state == State.COMMITTED)


def latest(job: JobFolder) -> CheckpointRef | None:
    """The newest that may be read, or None."""
    return next(candidates(job), None)


def latest_committed(job: JobFolder) -> tuple[int, str | None]:
    """(step, URI) of `latest`; (0, None) when there is none."""
    found = latest(job)
    return (found.step, found.uri) if found else (0, None)


def quarantine(job: JobFolder, ref: CheckpointRef, why: str) -> bool:
    """Nobody offers it from now on. False when somebody found it bad before: the first word stands."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return job.store.create_if_absent(f"{ref.key}/{QUARANTINED}", encode(Quarantine(why=why, at=at)))


class Fence:
    """Up to which step an attempt's commits count. Starts never change once written, so each is read once."""

    def __init__(self, job: JobFolder) -> None:
        self._job = job
        self._resumed_from: dict[int, int] = {}

    def why_fenced(self, ref: CheckpointRef) -> str:
        """Why a commit is not read; "" when it counts. Attempts are listed anew each time: call it after the commit was seen."""
        later = [number for number in self._job.attempt_numbers() if number > ref.attempt]
        for number in reversed(later):
            resumed_from = self._resumed_from_step(number)
            if resumed_from is not None and ref.step > resumed_from:
                return f"attempt {number} had begun from step {resumed_from}, so what attempt {ref.attempt} wrote past that is not read"
        return ""

    def _resumed_from_step(self, attempt: int) -> int | None:
        if attempt not in self._resumed_from:
            start = self._job.attempt_start(attempt)
            if start is None:
                return None
            self._resumed_from[attempt] = start.resumed_from_step
        return self._resumed_from[attempt]


def _look_at(job: JobFolder, ref: CheckpointRef, fence: Fence) -> Checkpoint:
    why = why_quarantined(job, ref)
    if why is not None:
        return Checkpoint(ref=ref, state=State.QUARANTINED, reason=why)
    if not job.store.exists(f"{ref.key}/{COMMITTED}"):
        return Checkpoint(ref=ref, state=State.TORN, reason="it has no COMMITTED: it is being written or removed, or its writer was killed")
    fenced = fence.why_fenced(ref)
    return Checkpoint(ref=ref, state=State.FENCED if fenced else State.COMMITTED, reason=fenced)


def why_quarantined(job: JobFolder, ref: CheckpointRef) -> str | None:
    """What whoever found it bad wrote, or None. The object's being there decides, whatever stands in it."""
    try:
        body = job.store.read(f"{ref.key}/{QUARANTINED}")
    except NotFound:
        return None
    try:
        return str(json.loads(body)["why"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return shortened(body.decode("utf-8", "replace").strip()) or "no reason was written"
