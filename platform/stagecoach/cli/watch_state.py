"""What `stagecoach watch` knows of a run: read from the bucket again and again, each object that cannot change only once."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stagecoach.contract.job import AttemptEnd, AttemptStart, Progress
from stagecoach.contract.ledger import JobFolder
from stagecoach.explain.facts import gather
from stagecoach.explain.records import Explanation, Next
from stagecoach.explain.resolve import Place, Target
from stagecoach.explain.verdict import explain, explain_stage
from stagecoach.report.numbers import finite

EXPLAIN_S = 5.0  # while nothing runs the launcher is asked so often
SETTLE_S = 30.0  # a stage runner or a flow submits again, or starts the next stage, within seconds
OVER = (Next.NOTHING, Next.CHANGE, Next.UPGRADE, Next.REPAIR)
OVER_UNLESS_SOMEBODY_ACTS = (Next.SUBMIT, Next.RESUBMIT, Next.LOOK, Next.UNPAUSE)
LOSS_SEGMENTS = 2  # of the newest attempt's events that are read for the curve: at most 2 MiB
MAX_LOSSES = 5000


@dataclass(frozen=True)
class Attempt:
    """One line of the attempts' table."""

    number: int
    start: AttemptStart | None
    end: AttemptEnd | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One look. `losses`: (step, loss), as far as they are known. `silent_s`: since the heartbeat moved, by our clock."""

    name: str
    place: str
    is_stage: bool
    nth: int
    of: int
    attempts: tuple[Attempt, ...] = ()
    progress: Progress | None = None
    losses: tuple[tuple[int, float], ...] = ()
    silent_s: float = 0.0
    is_finished: bool = False  # stage.json is there
    said: Explanation | None = None  # while nothing runs
    is_over: bool = False
    exit_code: int = 0

    @property
    def is_live(self) -> bool:
        """An attempt runs, as far as the bucket knows."""
        return bool(self.attempts) and self.attempts[-1].end is None and not self.is_finished


@dataclass
class _Job:
    """What is remembered of one stage or job."""

    place: Place
    attempts: dict[int, Attempt] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    losses_of: int = 0  # the attempt whose events were read
    is_finished: bool = False


class Watcher:
    """`look` reads what is new. Raises StorageError and ContractError as the bucket does; the next look may succeed."""

    def __init__(
        self, target: Target, *, explain_target: Callable[[Target], Explanation], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._target, self._explain, self._clock = target, explain_target, clock
        self._jobs = [_Job(place) for place in target.places]
        self._heartbeat: tuple[int, int] = (-1, -1)  # attempt, counter
        self._moved_at = clock()
        self._said: Explanation | None = None
        self._said_at = float("-inf")
        self._idle_since: float | None = None

    def look(self) -> Seen:
        """The stage that matters now, and how it is."""
        job = self._current()
        folder = job.place.folder
        attempts = self._attempts(job)
        newest = attempts[-1] if attempts else None
        progress = folder.progress(newest.number) if newest is not None else None
        self._note(job, newest, progress)
        is_live = newest is not None and newest.end is None and not job.is_finished
        if is_live:
            self._said = None  # what was said of an earlier end
        said = None if is_live else self._ask()
        is_over = self._is_over(said)
        return Seen(
            name=self._target.name, place=job.place.name, is_stage=job.place.is_stage, nth=self._jobs.index(job) + 1, of=len(self._jobs),
            attempts=attempts, progress=progress, losses=tuple(sorted(job.losses.items())), silent_s=self._clock() - self._moved_at,
            is_finished=job.is_finished, said=said, is_over=is_over,
            exit_code=newest.end.exit_code if newest is not None and newest.end is not None and not job.is_finished else 0,
        )  # fmt: skip

    def _current(self) -> _Job:
        """The last stage of which there is anything; the first one before."""
        current = self._jobs[0]
        for job in self._jobs:
            if job.attempts or job.place.folder.attempt_numbers() or job.place.folder.store.list("submissions"):
                current = job
            if not job.is_finished:
                job.is_finished = job.place.folder.stage() is not None
            if not job.is_finished:
                break
        return current

    def _attempts(self, job: _Job) -> tuple[Attempt, ...]:
        folder = job.place.folder
        for number in folder.attempt_numbers():
            known = job.attempts.get(number)
            if known is None or known.end is None:
                start = known.start if known is not None and known.start is not None else folder.attempt_start(number)
                job.attempts[number] = Attempt(number, start, folder.attempt_end(number))
        return tuple(job.attempts[number] for number in sorted(job.attempts))

    def _note(self, job: _Job, newest: Attempt | None, progress: Progress | None) -> None:
        """Keeps the loss, and when the heartbeat moved last."""
        if newest is not None and job.losses_of != newest.number:
            job.losses_of = newest.number
            job.losses |= read_losses(job.place.folder, newest.number)
        if newest is not None and newest.start is not None:  # steps past the resumed one are made again
            job.losses = {
                s: v for s, v in job.losses.items() if progress is None or s <= max(progress.step, newest.start.resumed_from_step)
            }
        if progress is None:
            return
        if progress.loss is not None and progress.step:
            job.losses[progress.step] = progress.loss
            while len(job.losses) > MAX_LOSSES:
                del job.losses[min(job.losses)]
        if self._heartbeat != (progress.attempt, progress.heartbeat):
            self._heartbeat, self._moved_at = (progress.attempt, progress.heartbeat), self._clock()

    def _ask(self) -> Explanation:
        """Why nothing runs."""
        now = self._clock()
        if self._said is None or now - self._said_at >= EXPLAIN_S:
            self._said, self._said_at = self._explain(self._target), now
        return self._said

    def _is_over(self, said: Explanation | None) -> bool:
        if said is None or not (said.next in OVER or said.next in OVER_UNLESS_SOMEBODY_ACTS):
            self._idle_since = None
            return False
        now = self._clock()
        self._idle_since = self._idle_since if self._idle_since is not None else now
        return said.next in OVER or now - self._idle_since >= SETTLE_S


def explain_now(target: Target, stage: str | None = None) -> Explanation:
    """From the bucket and the launcher: of the whole, or of one stage."""
    from stagecoach.explain.cluster import view_of_launcher

    facts = gather(target, view_of=view_of_launcher)
    return explain(facts) if stage is None else explain_stage(facts, stage)


def read_losses(folder: JobFolder, attempt: int) -> dict[int, float]:
    """step -> loss out of the newest `step` events of rank 0."""
    losses: dict[int, float] = {}
    for key in folder.segments("events", attempt, "rank-0")[-LOSS_SEGMENTS:]:
        for event in parse_events(folder.store.read(key)):
            value = event.get("value")
            loss = finite(value.get("loss")) if event.get("name") == "step" and isinstance(value, Mapping) else None
            step = event.get("step")
            if loss is not None and isinstance(step, int):
                losses[step] = loss
    return losses


def parse_events(body: bytes) -> list[Mapping[str, Any]]:
    """The whole lines of a segment; one that was cut is passed over."""
    import json

    found: list[Mapping[str, Any]] = []
    for line in body.split(b"\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
