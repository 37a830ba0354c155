"""What node 0's supervisor decides from the ledger: which attempt this is, from where it resumes, and whether there is one at all."""

import hashlib
import importlib.metadata
import secrets
from datetime import UTC, datetime

from stagecoach import __version__
from stagecoach.checkpoints import latest_committed
from stagecoach.constants import MAX_ATTEMPTS_WITHOUT_PROGRESS, ExitCode
from stagecoach.contract.attempts import end_the_dead, without_progress
from stagecoach.contract.identity import layout_hash
from stagecoach.contract.job import AttemptEnd, AttemptStart, Why
from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StagecoachError


class NoProgress(StagecoachError):
    """Too many counted attempts in a row committed nothing new."""

    exit_code = ExitCode.NO_PROGRESS


class AttemptTaken(StagecoachError):
    """Another supervisor of this job claimed the attempt: this one is not needed, or was fenced off."""

    exit_code = ExitCode.RETRY


def now() -> str:
    """UTC, for people."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def bury_the_dead(job: JobFolder, start: AttemptStart | None) -> AttemptEnd | None:
    """Writes the end of the newest attempt when nobody did: its supervisor was killed. Returns that attempt's end."""
    if start is None:
        return None
    end = job.attempt_end(start.attempt)
    if end is not None:
        return end
    end_the_dead(job, start, latest_committed(job)[0], by="successor", at=now())
    return job.attempt_end(start.attempt)


def attempts_without_progress(job: JobFolder, committed_step: int) -> list[int]:
    """The counted attempts at the end of the ledger that committed nothing new, newest first (`contract/attempts.py` has the rule)."""
    newest_first = ((number, job.attempt_start(number), job.attempt_end(number)) for number in reversed(job.attempt_numbers()))
    return without_progress(newest_first, committed_step)


def claim_next(
    job: JobFolder, spec: LaunchSpec, *, submission: int, host: str, port: int, in_place: bool, own: int | None = None
) -> AttemptStart:
    """Claims the next attempt. Raises NoProgress (written to the ledger as an attempt that ended before it began) and AttemptTaken.

    `own`: the attempt that this supervisor led before. One after it means that somebody took this one for dead: it has a successor, which
    must not be taken for dead in turn.
    """
    newest = job.newest_attempt()
    if own is not None and newest is not None and newest.attempt > own:
        raise AttemptTaken(
            f"attempt {newest.attempt} of {job.uri} was claimed at {newest.leader_host} after attempt {own} was taken for dead; "
            "this supervisor was replaced and leaves the job alone"
        )
    last = bury_the_dead(job, newest)
    step, uri = latest_committed(job)
    start = AttemptStart(
        attempt=last.attempt + 1 if last else 1,
        submission=submission,
        leader_host=host,
        leader_port=port,
        nonce=secrets.token_hex(16),
        nodes=spec.nodes,
        ranks_per_node=spec.ranks_per_node,
        world_size=spec.nodes * spec.ranks_per_node,
        layout=_layout(job, spec),
        identity=spec.identity,
        why=_why(job, last, submission, in_place=in_place),
        resumed_from_step=step,
        resumed_from=uri,
        versions=_versions(),
        started_at=now(),
    )
    stuck = attempts_without_progress(job, step)
    if not job.claim_attempt(start):
        raise AttemptTaken(f"attempt {start.attempt} of {job.uri} was claimed by another supervisor; this one leaves it alone")
    if len(stuck) >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        _give_up(job, start, stuck, last)
    return start


def _give_up(job: JobFolder, start: AttemptStart, stuck: list[int], last: AttemptEnd | None) -> None:
    numbers = ", ".join(str(number) for number in reversed(stuck))
    message = f"attempts {numbers} committed nothing past step {start.resumed_from_step}; the last one: {last.message if last else ''}"
    step = start.resumed_from_step
    job.end_attempt(
        AttemptEnd(
            attempt=start.attempt, kind="no_progress", exit_code=ExitCode.NO_PROGRESS, message=message, step=step, committed_step=step,
            first_failed_rank=last.first_failed_rank if last else None, first_failed_node=last.first_failed_node if last else None,
            written_by="leader", ended_at=now(),
        )
    )  # fmt: skip
    raise NoProgress(message)


def _why(job: JobFolder, last: AttemptEnd | None, submission: int, *, in_place: bool) -> Why:
    if last is None:
        return "first"
    if in_place:
        return "restart"
    if last.exit_code == ExitCode.STOPPED:
        return "preempted"
    before = job.attempt_start(last.attempt)
    return "resubmitted" if before is not None and before.submission != submission else "retry"


def _layout(job: JobFolder, spec: LaunchSpec) -> str:
    plan = job.plan()
    if plan is not None:
        return layout_hash(plan)
    return hashlib.sha256(f"{spec.nodes}x{spec.ranks_per_node}".encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"stagecoach": __version__}
    try:
        versions["torch"] = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        pass
    return versions
