"""A pause or a cancel that stands in the bucket says more than how the job ended: somebody wanted it, and somebody lifts it. Pure."""

from dataclasses import replace

from stagecoach.contract.control import Hold
from stagecoach.explain.records import Cause, Explanation, Held, Next

OUT_OF_REACH = {Cause.FINISHED, Cause.NO_STAGES, Cause.NEWER_FORMAT, Cause.UNREADABLE}  # a hold changes nothing about these
GOES_ON = {Cause.RUNNING, Cause.STARTING, Cause.WAITING_FOR_PEERS, Cause.STOPPING, Cause.SILENT}  # the job has not ended yet


def under_hold(said: Explanation, hold: Hold | None) -> Explanation:
    """What is said of a job while its run is held: PAUSED or CANCELLED once its job has ended. A job that goes on, and one that needs a
    change before it may be tried again, keep their cause; that the run is held is told beside it."""
    if hold is None or said.cause in OUT_OF_REACH:
        return said
    held = Held(kind=hold.kind, by=hold.by, at=hold.at, reason=hold.reason)
    if said.cause in GOES_ON or said.next in (Next.CHANGE, Next.RESTART_IN_PLACE):
        return replace(said, held=held)
    if hold.kind == "pause":
        return replace(said, cause=Cause.PAUSED, next=Next.UNPAUSE, held=held)
    return replace(said, cause=Cause.CANCELLED, next=Next.NOTHING, held=held)


def words_of(held: Held) -> str:
    """`paused by ann@laptop at 2026-11-03T10:00:00+00:00 (lunch)`."""
    verb = "paused" if held.kind == "pause" else "cancelled"
    by, why = f" by {held.by}" if held.by else "", f" ({held.reason})" if held.reason else ""
    return f"{verb}{by} at {held.at}{why}"


def way_on(run: str, held: Held) -> str:
    """The commands that let the run go on."""
    resume = f"`stagecoach resume {run}`"
    return f"`stagecoach unpause {run}`, then {resume}" if held.kind == "pause" else resume
