"""Reads what `explain` and `status` decide from. Reading never raises for one bad object: it becomes a fact (`Unreadable`)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from stagecoach.checkpoints import latest_committed
from stagecoach.contract.job import Submission
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ContractError, NewerFormat
from stagecoach.explain.cluster import ViewOf, ask
from stagecoach.explain.records import AttemptFacts, Facts, Heartbeat, JobFacts, SubmissionFacts, Unreadable
from stagecoach.explain.resolve import Target
from stagecoach.stages.control import Control
from stagecoach.storage import ObjectCorrupt

T = TypeVar("T")

POLL_S = 0.2


@dataclass
class _Reader:
    """Reads objects, and keeps those that cannot be read."""

    unreadable: list[Unreadable] = field(default_factory=list)

    def read(self, what: Callable[[], T], otherwise: T, attempt: int | None = None) -> T:
        try:
            return what()
        except (ContractError, ObjectCorrupt) as error:
            says = str(error)
            self.unreadable.append(
                Unreadable(uri=says.split(" ", 1)[0].rstrip(":"), says=says, newer=isinstance(error, NewerFormat), attempt=attempt)
            )
            return otherwise


def gather(target: Target, *, view_of: ViewOf | None = None, wait_s: float = 0.0) -> Facts:
    """Everything of a run or a job. `view_of` None: the bucket alone. `wait_s`: how long a heartbeat is watched where an attempt has no
    end. Raises StorageError when the bucket cannot be read."""
    jobs = [gather_job(place.name, place.folder, is_stage=place.is_stage, view_of=view_of) for place in target.places]
    folders = [place.folder for place in target.places]
    reader = _Reader()
    control = Control(target.runs, target.name) if target.runs is not None else None
    hold = reader.read(control.held, None) if control is not None else None
    request = reader.read(control.request, None) if control is not None else None
    return Facts(
        name=target.name,
        uri=target.uri,
        run=target.run,
        jobs=tuple(watch_heartbeats(folders, jobs, wait_s)),
        hold=hold,
        request=request,
        unreadable=(*target.unreadable, *reader.unreadable),
    )


def gather_job(name: str, folder: JobFolder, *, is_stage: bool, view_of: ViewOf | None = None) -> JobFacts:
    """One job's folder, and what its launcher says of the newest submission."""
    reader = _Reader()
    claims: list[Submission] = reader.read(folder.submissions, [])
    submissions = tuple(
        SubmissionFacts(claim=claim, state=reader.read(lambda k=claim.submission: folder.submission_state(k), None))  # type: ignore[misc]
        for claim in claims
    )
    cluster = ask(view_of, claims[-1].launcher, claims[-1].name) if view_of and claims else None  # first: a launcher may end a dead attempt
    attempts = gather_attempts(folder, reader)
    return JobFacts(
        name=name,
        uri=folder.uri,
        is_stage=is_stage,
        submissions=submissions,
        attempts=attempts,
        committed_step=committed_now(folder, reader) if attempts and attempts[-1].end is None else None,
        manifest=reader.read(folder.stage, None),
        cluster=cluster,
        unreadable=tuple(reader.unreadable),
    )


def gather_attempts(folder: JobFolder, reader: _Reader) -> tuple[AttemptFacts, ...]:
    """All attempts in order; who joined and the last heartbeat of the newest one."""
    numbers = folder.attempt_numbers()
    found = []
    for n in numbers:
        facts = AttemptFacts(
            number=n,
            start=reader.read(lambda n=n: folder.attempt_start(n), None, n),  # type: ignore[misc]
            end=reader.read(lambda n=n: folder.attempt_end(n), None, n),  # type: ignore[misc]
        )
        if n == numbers[-1]:
            facts = replace(
                facts,
                nodes=tuple(reader.read(lambda n=n: folder.nodes(n), [], n)),  # type: ignore[misc]
                progress=reader.read(lambda n=n: folder.progress(n), None, n),  # type: ignore[misc]
            )
        found.append(facts)
    return tuple(found)


def committed_now(folder: JobFolder, reader: _Reader) -> int | None:
    """The newest step that may be read, by the rule that every reader of checkpoints has; None when there are no checkpoints at all.

    What an attempt last told of itself can be older than its last commit, or newer than what was found bad since.
    """
    if not folder.store.list_folders("checkpoints"):
        return None
    return reader.read(lambda: latest_committed(folder)[0], None)


def watch_heartbeats(folders: Sequence[JobFolder], jobs: Sequence[JobFacts], wait_s: float) -> list[JobFacts]:
    """Watches the heartbeats of live attempts until each has moved, at most `wait_s` seconds of our own monotonic clock.

    An attempt that ends meanwhile is read again. Nothing is watched, and no time spent, where every attempt has ended.
    """
    watched = list(jobs)
    pending = [index for index, job in enumerate(jobs) if job.is_live and job.attempts[-1].progress is not None]
    if wait_s <= 0:
        return watched
    started = time.monotonic()
    while pending:
        waited = time.monotonic() - started
        for index in list(pending):
            newer = look_again(folders[index], watched[index], waited)
            if newer is not None:
                watched[index] = newer
                pending.remove(index)
        if waited >= wait_s:
            break
        if pending:
            time.sleep(min(POLL_S, wait_s))
    for index in pending:
        watched[index] = replace(watched[index], heartbeat=Heartbeat(moved=False, watched_s=round(time.monotonic() - started, 3)))
    return watched


def look_again(folder: JobFolder, job: JobFacts, waited: float) -> JobFacts | None:
    """The job with its newest heartbeat or its end, when either is new; None when nothing moved."""
    attempt = job.attempts[-1]
    before = attempt.progress
    reader = _Reader()
    now = reader.read(lambda: folder.progress(attempt.number), None)
    end = reader.read(lambda: folder.attempt_end(attempt.number), None)
    if end is not None:
        return replace(job, attempts=(*job.attempts[:-1], replace(attempt, progress=now or before, end=end)))
    if now is None or before is None or now.heartbeat == before.heartbeat:
        return None
    moved = replace(attempt, progress=now)
    committed = committed_now(folder, reader)
    return replace(
        job, attempts=(*job.attempts[:-1], moved), committed_step=committed, heartbeat=Heartbeat(moved=True, watched_s=round(waited, 3))
    )
