"""One sentence from an `Explanation`: why, what was lost, what happens next. Pure."""

import re
from collections.abc import Callable

from stagecoach.constants import CANNOT_START, GIVE_UP_S, MAX_ATTEMPTS_WITHOUT_PROGRESS, ExitCode
from stagecoach.explain.holds import way_on, words_of
from stagecoach.explain.records import Cause, Explanation, Next

MAX_MESSAGE = 240  # characters of somebody's exception in our sentence; `--json` and the log have all of it


def sentence_of(said: Explanation) -> str:
    """Subject, cause, loss, next; separated by semicolons, ended by a full stop."""
    subject = said.run if said.stage is None else f"{said.run}, stage {said.stage}"
    parts = [f"{subject}: {CAUSES[said.cause](said)}", lost(said), what_next(said), _held_beside(said)]
    return "; ".join(part for part in parts if part) + "."


def plural(number: int, word: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def clip(message: str) -> str:
    """Somebody's message in one line, without its full stop and without the place, which the sentence has said."""
    flat = re.sub(r"^rank \d+, step \d+: ", "", re.sub(r"\s+", " ", message).strip()).rstrip(".")
    return flat if len(flat) <= MAX_MESSAGE else flat[: MAX_MESSAGE - 1].rstrip() + "…"


def said_by(message: str) -> str:
    """`: message`, or nothing."""
    return f": {clip(message)}" if message.strip() else ""


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def where(said: Explanation) -> str:
    """` on rank 3 (gpu-7)`, as far as it is known."""
    rank = f" on rank {said.rank}" if said.rank is not None else ""
    if said.node is None:
        return rank
    return f"{rank} ({said.node})" if rank else f" on {said.node}"


def at_step(said: Explanation) -> str:
    """` at step 130`, or where it got to before its first step."""
    return f" at step {said.step:,}" if said.step else " before its first step"


def attempt(said: Explanation) -> str:
    """`attempt 2`; of which submission is in `--json`."""
    return f"attempt {said.attempt}"


# --- why -----------------------------------------------------------------------------------------------------------------------


def _queued(said: Explanation) -> str:
    after = f" after attempt {said.previous.attempt} {_ended_as(said.previous.cause)}" if said.previous else ""
    reason = f" ({clip(said.cluster_reason)})" if said.cluster_reason and said.cluster_phase else ""
    return f"submission {said.submission} waits in the queue of `{said.launcher}`{after}{reason}, no attempt of it has started"


def _claimed(said: Explanation) -> str:
    return (
        f"submission {said.submission} was claimed for the launcher `{said.launcher}`, but whoever claimed it never confirmed that the "
        "launcher took it, and no attempt has started"
    )


def _ended_before_start(said: Explanation) -> str:
    code = f" with exit code {said.exit_code}" if said.exit_code is not None else ""
    return f"submission {said.submission} ended{code} before any attempt of it started{said_by(said.message)}"


def _waiting_for_peers(said: Explanation) -> str:
    here = (said.nodes or 0) - len(said.missing_nodes)
    missing = ", ".join(str(node) for node in said.missing_nodes[:8]) + (", …" if len(said.missing_nodes) > 8 else "")
    word = "node" if len(said.missing_nodes) == 1 else "nodes"
    return f"{attempt(said)} waits for its peers, {here} of {plural(said.nodes or 0, 'node')} joined, {word} {missing} not yet"


def _starting(said: Explanation) -> str:
    phase = f" ({said.phase})" if said.phase else ""
    from_step = f" from step {said.step:,}" if said.step else ""
    return f"{attempt(said)} is starting{phase}{from_step}{_after_previous(said)}"


def _running(said: Explanation) -> str:
    of = f" of {said.steps:,}" if said.steps else ""
    eta = f", about {duration(said.eta_s)} to go" if said.eta_s is not None else ""
    seen = "" if said.heartbeat_moved else " by its last heartbeat (not watched)"
    return f"{attempt(said)} is running at step {said.step:,}{of}{seen}{eta}{_after_previous(said)}"


def _silent(said: Explanation) -> str:
    return (
        f"{attempt(said)} wrote no end and its heartbeat did not move for {said.watched_s:.0f} s; it was last seen"
        f"{at_step(said)}{f' in phase {said.phase}' if said.phase else ''}"
    )


def _supervisor_gone(said: Explanation) -> str:
    code = f" with exit code {said.exit_code}" if said.exit_code is not None else ""
    reason = said_by(said.message)
    return f"{attempt(said)} wrote no end, and `{said.launcher}` says {said.cluster_phase}{code}{reason}; it was last seen{at_step(said)}"


def _stopped(said: Explanation) -> str:
    after = " after saving" if said.step else ""  # before the first step there was nothing to save
    return f"{attempt(said)} was stopped by the platform{at_step(said)}{after}{said_by(said.message)}"


def _stopped_unsaved(said: Explanation) -> str:
    return f"{attempt(said)} was stopped by the platform{at_step(said)} before a save could finish{said_by(said.message)}"


def _paused(said: Explanation) -> str:
    if said.held is None:
        return f"submission {said.submission} is paused{said_by(said.cluster_reason)}"
    return f"{_so_far(said)}{words_of(said.held)}"


def _so_far(said: Explanation) -> str:
    """What was done before somebody held the run."""
    if said.next_stage is not None:
        return f"finished at step {said.step or 0:,}, and before the next stage, {said.next_stage}, the run was "
    if said.attempt is not None:
        return f"{attempt(said)} ended{at_step(said)}, the run was "
    return "no attempt has started, the run was "


def _cancelled(said: Explanation) -> str:
    if said.held is not None:
        return f"{_so_far(said)}{words_of(said.held)}"
    if said.attempt is None:
        return f"submission {said.submission} was cancelled before it started{said_by(said.message)}"
    return f"{attempt(said)} was cancelled{at_step(said)}{said_by(said.message)}"


def _failed(verb: str) -> Callable[[Explanation], str]:
    def words(said: Explanation) -> str:
        return f"{attempt(said)} {verb}{at_step(said)}{where(said)}{said_by(said.message)}"

    return words


def _rendezvous(said: Explanation) -> str:
    return f"{attempt(said)} never started, its nodes did not meet{where(said)}{said_by(said.message)}"


def _found_dead(said: Explanation) -> str:
    why = said.message or "its supervisor left without writing an end"
    return f"{attempt(said)} was found dead{at_step(said)}{where(said)}{said_by(why)}"


def _no_progress(said: Explanation) -> str:
    tried = max(said.without_progress, MAX_ATTEMPTS_WITHOUT_PROGRESS)
    return (
        f"gave up (exit code {int(ExitCode.NO_PROGRESS)}) after {tried} attempts in a row that committed nothing new, the last one failed"
        f"{at_step(said)}{where(said)}{said_by(said.message)}"
    )


def _refused(what: str) -> Callable[[Explanation], str]:
    def words(said: Explanation) -> str:
        return f"{attempt(said)} ended{at_step(said)}{where(said)} because {what} (exit code {said.exit_code}){said_by(said.message)}"

    return words


def _trained(said: Explanation) -> str:
    return f"{attempt(said)} is done at step {said.step or 0:,}, its stage.json is not written yet"


def _tries(said: Explanation) -> str:
    return "" if said.attempts <= 1 else f" in {said.attempts} attempts"


def _stage_finished(said: Explanation) -> str:
    return f"finished at step {said.step or 0:,}{_tries(said)}, and the next stage, {said.next_stage}, has not been started"


def _finished(said: Explanation) -> str:
    at = f" at step {said.step:,}" if said.step and said.stage is not None else ""  # steps of other jobs are their phases
    total = said.steps_lost_total
    again = f" ({plural(total, 'step')} done twice)" if total else ""
    return f"finished{at}{_tries(said)}{again}"


CAUSES: dict[Cause, Callable[[Explanation], str]] = {
    Cause.NO_STAGES: lambda _: "the run was recorded without any stage",
    Cause.NEVER_SUBMITTED: lambda _: "was never submitted to a launcher",
    Cause.CLAIMED: _claimed,
    Cause.QUEUED: _queued,
    Cause.ADMITTED: lambda said: (
        f"submission {said.submission} is admitted by `{said.launcher}` ({said.cluster_phase}{said_by(said.cluster_reason)}), "
        "no attempt of it has started"
    ),
    Cause.PAUSED: _paused,
    Cause.ENDED_BEFORE_START: _ended_before_start,
    Cause.WAITING_FOR_PEERS: _waiting_for_peers,
    Cause.STARTING: _starting,
    Cause.RUNNING: _running,
    Cause.STOPPING: lambda said: (
        f"attempt {said.attempt} is stopping{at_step(said)}, saving within its grace period"
        if said.attempt is not None
        else f"submission {said.submission} is stopping before an attempt of it started"
    ),
    Cause.SILENT: _silent,
    Cause.SUPERVISOR_GONE: _supervisor_gone,
    Cause.STOPPED: _stopped,
    Cause.STOPPED_UNSAVED: _stopped_unsaved,
    Cause.PREEMPTED: lambda said: f"{attempt(said)} was preempted{at_step(said)}{said_by(said.message)}",
    Cause.CANCELLED: _cancelled,
    Cause.CRASHED: _failed("crashed"),
    Cause.HUNG: _failed("hung"),
    Cause.OUT_OF_MEMORY: _failed("ran out of memory"),
    Cause.PEER_LOST: _failed("lost a peer"),
    Cause.STORE_GONE: _failed("lost the bucket"),
    Cause.RENDEZVOUS_FAILED: _rendezvous,
    Cause.FOUND_DEAD: _found_dead,
    Cause.BAD_CONFIG: _refused("a setting is wrong"),
    Cause.BAD_DATA: _refused("the data is wrong"),
    Cause.INCOMPATIBLE_CHECKPOINT: _refused("its checkpoint does not fit"),
    Cause.DIVERGED: _refused("training diverged past its policy"),
    Cause.NO_PROGRESS: _no_progress,
    Cause.OUT_OF_TIME: _refused("its time is over"),
    Cause.TRAINED: _trained,
    Cause.STAGE_FINISHED: _stage_finished,
    Cause.FINISHED: _finished,
    Cause.NEWER_FORMAT: lambda said: clip(said.message).partition(";")[0],
    Cause.UNREADABLE: lambda said: f"cannot be explained, an object of its folder is damaged: {clip(said.message)}",
}

_ENDED_AS = {
    Cause.TRAINED: "was done", Cause.STOPPED: "was stopped by the platform", Cause.PREEMPTED: "was preempted",
    Cause.CANCELLED: "was cancelled", Cause.CRASHED: "crashed", Cause.HUNG: "hung",
    Cause.OUT_OF_MEMORY: "ran out of memory", Cause.PEER_LOST: "lost a peer",
    Cause.STORE_GONE: "lost the bucket", Cause.RENDEZVOUS_FAILED: "failed to bring its nodes together", Cause.FOUND_DEAD: "was found dead",
}  # fmt: skip


def _ended_as(cause: Cause) -> str:
    return _ENDED_AS.get(cause, f"ended ({cause})")


def _after_previous(said: Explanation) -> str:
    """How the attempt before ended, and what it cost: a person who is paged asks for this first."""
    before = said.previous
    if before is None:
        return ""
    at = f" at step {before.step:,}" if before.step else ""
    rank = f" on rank {before.rank}" if before.rank is not None else ""
    cost = f" and lost {plural(before.steps_lost, 'step')}" if before.steps_lost else ""
    return f", after attempt {before.attempt} {_ended_as(before.cause)}{at}{rank}{cost}"


# --- what was lost -------------------------------------------------------------------------------------------------------------

SAYS_NO_LOSS = {
    Cause.NO_STAGES, Cause.NEVER_SUBMITTED, Cause.CLAIMED, Cause.QUEUED, Cause.ADMITTED, Cause.ENDED_BEFORE_START,
    Cause.WAITING_FOR_PEERS, Cause.STARTING, Cause.RUNNING, Cause.STOPPING, Cause.TRAINED, Cause.STAGE_FINISHED, Cause.FINISHED,
    Cause.NEWER_FORMAT, Cause.UNREADABLE,
}  # fmt: skip


def lost(said: Explanation) -> str:
    """What the newest attempt cost, for causes that can cost something."""
    if said.cause in SAYS_NO_LOSS or said.attempt is None or said.next_stage is not None:
        return ""
    steps, committed = said.steps_lost or 0, said.committed_step or 0
    verb = "would be" if said.cause == Cause.SILENT else "is" if steps == 1 else "are"
    if steps == 0:
        if not said.step:
            return "nothing is lost"
        return f"no step is lost, step {committed:,} is committed"
    if committed == 0:
        return f"{plural(steps, 'step')} {verb} lost, nothing was committed"
    return f"{plural(steps, 'step')} after the commit at step {committed:,} {verb} lost"


# --- what happens next ---------------------------------------------------------------------------------------------------------


def what_next(said: Explanation) -> str:
    """The last part of the sentence."""
    return NEXTS[said.next](said)


def _from(said: Explanation) -> str:
    return f"from step {said.committed_step:,}" if said.committed_step else "from the beginning"


def _wait(said: Explanation) -> str:
    if said.waits_for is not None:
        return f"its turn comes once stage {said.waits_for} is finished"
    if said.cause == Cause.TRAINED:
        return "the stage runner verifies its checkpoint, evaluates and writes stage.json next"
    if said.cause == Cause.ADMITTED and CANNOT_START in said.cluster_reason:
        return f"it starts by itself once that is there; whoever waits for it gives it up after {GIVE_UP_S:.0f} s"
    if said.cause in (Cause.QUEUED, Cause.ADMITTED):
        return "it starts by itself once the launcher gives it its machines"
    if said.cause in (Cause.WAITING_FOR_PEERS, Cause.STARTING, Cause.RUNNING):
        return ""
    if said.cause == Cause.STOPPING:
        return "it ends with exit code 143 and may be started again"
    return f"`{said.launcher}` starts it again by itself ({said.cluster_phase}), {_from(said)}"


def _change(said: Explanation) -> str:
    remedy = {
        Cause.BAD_CONFIG: "correct the setting and start it again",
        Cause.BAD_DATA: "mend or replace the data and start it again",
        Cause.INCOMPATIBLE_CHECKPOINT: "start from another checkpoint or in a new run",
        Cause.OUT_OF_TIME: "give it more time and start it again",
        Cause.DIVERGED: "fork the run from an earlier checkpoint with other settings",
    }.get(said.cause, "mend what fails and start it again")
    return f"it is not retried: {remedy}"


def _resubmit(said: Explanation) -> str:
    if said.cause in (Cause.CLAIMED, Cause.ENDED_BEFORE_START):
        return "submit it again with the same name, which attaches to it if it does run"
    return f"nothing runs now, submitted again it goes on {_from(said)}"


def _way_on(said: Explanation) -> str:
    assert said.held is not None
    where_from = f"with stage {said.next_stage}" if said.next_stage else _from(said)
    return f"{way_on(said.run, said.held)} goes on {where_from}"


def _submit(said: Explanation) -> str:
    if said.can_resume:
        return f"`stagecoach resume {said.run}` starts {f'stage {said.next_stage}' if said.next_stage else 'it'}"
    if said.next_stage:
        return f"start {said.next_stage} by running the pipeline again with the same run id"
    return "start it by running it again with the same name"


def _nothing(said: Explanation) -> str:
    if said.held is not None:
        return _way_on(said)
    if said.cause == Cause.NEVER_SUBMITTED:
        return "it was not asked for"
    return "" if said.cause in (Cause.FINISHED, Cause.NO_STAGES) else "it is not started again by itself"


def _held_beside(said: Explanation) -> str:
    """That the run is held, where that is not the cause itself."""
    if said.held is None or said.cause in (Cause.PAUSED, Cause.CANCELLED):
        return ""
    return f"the run was {words_of(said.held)}: nothing of it is submitted until {way_on(said.run, said.held)}"


NEXTS: dict[Next, Callable[[Explanation], str]] = {
    Next.NOTHING: _nothing,
    Next.WAIT: _wait,
    Next.RESTART_IN_PLACE: lambda said: f"its supervisor starts attempt {(said.attempt or 0) + 1} in place, {_from(said)}",
    Next.SUBMIT: _submit,
    Next.RESUBMIT: _resubmit,
    Next.CHANGE: _change,
    Next.LOOK: lambda said: f"look at `stagecoach logs {said.run}`: if it is dead, submitted again it goes on {_from(said)}",
    Next.UNPAUSE: lambda said: _way_on(said) if said.held else f"it goes on {_from(said)} once it is unpaused",
    Next.UPGRADE: lambda _: "read it with that version of Stagecoach or a later one",
    Next.REPAIR: lambda _: "restore that object from a backup, or start a new run",
}
