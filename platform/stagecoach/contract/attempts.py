"""Rules over the attempts of a job that several parts apply: supervisors, launchers, `explain`."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from stagecoach.constants import MAX_ATTEMPTS_WITHOUT_PROGRESS, ExitCode
from stagecoach.contract.job import AttemptEnd, AttemptStart, Progress
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ContractError

T = TypeVar("T")
FoundBy = Literal["successor", "controller"]

SUSPECTED_AFTER = 2  # failures that began on one machine: once may be chance, the third in a row without progress would end the job

Attempt = tuple[int, AttemptStart | None, AttemptEnd | None]  # its number, and what stands in the ledger


def without_progress(newest_first: Iterable[Attempt], reached: int, *, at_most: int | None = MAX_ATTEMPTS_WITHOUT_PROGRESS) -> list[int]:
    """The counted attempts (75) at the end of the ledger that committed nothing new, newest first; no more are read than `at_most`.

    `reached` is the newest step that is committed. An attempt made progress when a later one resumed further on than it did, or the newest
    commit is beyond its start. One stopped by the platform (143), or without an end, is passed over; one that made progress, was done or
    ended fatally (somebody looked, and started it again) ends the row.
    """
    found: list[int] = []
    for number, start, end in newest_first:
        if start is None or reached > start.resumed_from_step:
            break
        if end is not None and ExitCode(end.exit_code).is_counted:
            found.append(number)
        elif end is not None and end.exit_code != ExitCode.STOPPED:
            break
        reached = start.resumed_from_step
        if len(found) == at_most:
            break
    return found


def bad_machines(ends_newest_first: Iterable[AttemptEnd | None], *, at_least: int = SUSPECTED_AFTER) -> tuple[str, ...]:
    """Machines on which the last attempts failed first, again and again, sorted. One that was done, or stopped by the platform, clears
    all before it: the machines were good then. An attempt without an end says nothing."""
    failures: Counter[str] = Counter()
    for end in ends_newest_first:
        if end is None:
            continue
        if end.exit_code in (ExitCode.DONE, ExitCode.STOPPED):
            break
        if ExitCode(end.exit_code).is_counted and end.first_failed_node:
            failures[end.first_failed_node] += 1
    return tuple(sorted(machine for machine, count in failures.items() if count >= at_least))


def end_the_dead(job: JobFolder, start: AttemptStart, committed_step: int, *, by: FoundBy, at: str, cancelled: bool = False) -> None:
    """Writes the end that the attempt's leader cannot write any more, unless somebody did. `committed_step`: the newest commit that may
    be read; steps after it are lost, whatever the last heartbeat said. Raises StorageError."""
    progress = _readable(lambda: job.progress(start.attempt))
    machine = next((node.machine for node in _readable(lambda: job.nodes(start.attempt)) or () if node.node == 0), None)
    job.end_attempt(dead_end(start, progress, committed_step, by=by, machine=machine, cancelled=cancelled, at=at))


def dead_end(
    start: AttemptStart, progress: Progress | None, committed_step: int, *, by: FoundBy, machine: str | None, cancelled: bool, at: str
) -> AttemptEnd:
    """What `end_the_dead` writes. `machine` is where the leader ran, as far as the ledger knows."""
    committed = max(start.resumed_from_step, committed_step)
    step = max(committed, progress.step if progress else 0)
    seen = f"last seen at step {progress.step} in phase {progress.phase}" if progress else "no step of it was seen"
    died = f"no end was written: the supervisor at {start.leader_host} was killed or its machine was lost; {seen}"
    return AttemptEnd(
        attempt=start.attempt,
        kind="cancelled" if cancelled else "found_dead",
        exit_code=int(ExitCode.STOPPED if cancelled else ExitCode.RETRY),
        first_failed_node=None if cancelled else machine,
        message="cancelled, and killed because it did not end within its grace period" if cancelled else died,
        step=step,
        committed_step=committed,
        steps_lost=step - committed,
        seconds=progress.seconds if progress else {},
        written_by=by,
        ended_at=at,
    )


def _readable(read: Callable[[], T]) -> T | None:
    """None for a damaged object: it must not keep an attempt from being ended."""
    try:
        return read()
    except ContractError:
        return None
