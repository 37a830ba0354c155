"""What the bucket says of one submission, beside what a launcher sees by itself."""

from dataclasses import dataclass

from stagecoach.checkpoints import latest_committed
from stagecoach.contract.attempts import end_the_dead
from stagecoach.contract.job import AttemptStart
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StagecoachError
from stagecoach.launch.local_phase import LedgerView
from stagecoach.launch.local_state import now


@dataclass(frozen=True)
class LedgerRead:
    """`trouble` is what kept us from reading: a store that is away must not hide what the launcher knows. `exit_code`: of the newest
    attempt, where it has ended."""

    view: LedgerView
    trouble: str = ""
    exit_code: int | None = None


def read_ledger(folder: JobFolder, submission: int) -> LedgerRead:
    """Raises nothing."""
    try:
        starts = [start for number in folder.attempt_numbers() if (start := folder.attempt_start(number)) is not None]
        own = [start for start in starts if start.submission == submission]
        if not own:
            return LedgerRead(LedgerView())
        newest = own[-1].attempt
        end = folder.attempt_end(newest)
        view = LedgerView(
            newest=newest,
            attempts=len(own),
            all_joined=len(folder.nodes(newest)) == own[-1].nodes,
            restarting=end is not None and end.restarts_in_place,
        )
        return LedgerRead(view, exit_code=end.exit_code if end is not None else None)
    except StagecoachError as error:
        return LedgerRead(LedgerView(), f"the ledger cannot be read: {error}")


def end_dead_attempt(folder: JobFolder, attempt: int | None, *, cancelled: bool) -> str:
    """Writes the end that the leader could not write any more, unless somebody did. Returns what went wrong, if anything."""
    try:
        start: AttemptStart | None = folder.attempt_start(attempt) if attempt is not None else None
        if start is not None and folder.attempt_end(start.attempt) is None:
            end_the_dead(folder, start, latest_committed(folder)[0], by="controller", at=now(), cancelled=cancelled)
    except StagecoachError as error:
        return f"its end cannot be written to the ledger: {error}"
    return ""
