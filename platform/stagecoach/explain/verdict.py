"""Decides why a run is where it is. Pure: the same `Facts` always give the same `Explanation`.

Order of trust: what is written in the bucket, then what the cluster says, then whether a heartbeat moved. The cluster only refines what
the bucket leaves open (a job that has no attempt yet, an attempt that has no end).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stagecoach.constants import MAX_ATTEMPTS_WITHOUT_PROGRESS, ExitCode, Phase
from stagecoach.contract.attempts import without_progress
from stagecoach.contract.job import AttemptEnd
from stagecoach.explain.holds import under_hold
from stagecoach.explain.records import AttemptFacts, Cause, Explanation, Facts, JobFacts, Next, Previous, SubmissionFacts, Unreadable
from stagecoach.explain.sentence import sentence_of

PENDING_PHASES = {  # what a launcher says of a submission that has no attempt yet
    Phase.QUEUED: (Cause.QUEUED, Next.WAIT),
    Phase.PREEMPTED: (Cause.QUEUED, Next.WAIT),
    Phase.RESTARTING: (Cause.ADMITTED, Next.WAIT),
    Phase.ADMITTED: (Cause.ADMITTED, Next.WAIT),
    Phase.STARTING: (Cause.ADMITTED, Next.WAIT),
    Phase.RUNNING: (Cause.ADMITTED, Next.WAIT),
    Phase.STOPPING: (Cause.STOPPING, Next.WAIT),
    Phase.PAUSED: (Cause.PAUSED, Next.UNPAUSE),
    Phase.CANCELLED: (Cause.CANCELLED, Next.NOTHING),
    Phase.FAILED: (Cause.ENDED_BEFORE_START, Next.RESUBMIT),
    Phase.SUCCEEDED: (Cause.ENDED_BEFORE_START, Next.RESUBMIT),
}
GONE = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.PREEMPTED, Phase.QUEUED, Phase.PAUSED)  # no process of the attempt is left
COMING_BACK = (Phase.QUEUED, Phase.ADMITTED, Phase.STARTING, Phase.RUNNING, Phase.RESTARTING, Phase.PREEMPTED)  # without anybody's help


def explain(facts: Facts) -> Explanation:
    """The whole run's, or the one job's: that of the job which decides what happens to it."""
    return in_words(under_hold(decide(facts), facts.hold), facts)


def in_words(said: Explanation, facts: Facts) -> Explanation:
    """With its sentence."""
    said = replace(said, can_resume=facts.request is not None)
    return replace(said, sentence=sentence_of(said))


def explain_each(facts: Facts) -> list[Explanation]:
    """Every stage's of a run on its own, or the one job's."""
    if facts.unreadable or not facts.jobs:
        return [explain(facts)]
    held = deciding_job(asked_jobs(facts))  # later stages wait for this one anyway
    each = [under_hold(explain_job(job, run=facts.name), facts.hold if job is held else None) for job in facts.jobs]
    turns = [in_turn(facts, job, said) for job, said in zip(facts.jobs, each, strict=True)]
    return [in_words(said, facts) for said in turns]


def explain_stage(facts: Facts, stage: str) -> Explanation:
    """One stage's on its own; the whole run's where that cannot be told apart."""
    return next((said for said in explain_each(facts) if said.stage == stage), explain(facts))


def in_turn(facts: Facts, job: JobFacts, said: Explanation) -> Explanation:
    """Of a stage that nothing was done for: that nobody asked for it, or that another one comes first."""
    if job.is_touched or job.manifest is not None:
        return said
    if not facts.is_asked(job):
        return replace(said, next=Next.NOTHING)
    first = next(one for one in asked_jobs(facts) if one.manifest is None)
    return said if first is job else replace(said, next=Next.WAIT, waits_for=first.name)


def decide(facts: Facts) -> Explanation:
    """Without words."""
    if facts.unreadable:
        return unreadable(facts.unreadable[0], run=facts.name)
    if not facts.jobs:
        return Explanation(run=facts.name, cause=Cause.NO_STAGES, next=Next.NOTHING)
    jobs = asked_jobs(facts)
    job = deciding_job(jobs)
    if job is not None:
        if not job.is_touched and job is not jobs[0]:
            return next_stage_not_started(facts, job)
        return explain_job(job, run=facts.name)
    last = explain_job(jobs[-1], run=facts.name)
    total = sum(explain_job(one, run=facts.name).steps_lost_total for one in facts.jobs)
    return replace(last, cause=Cause.FINISHED, next=Next.NOTHING, steps_lost_total=total)


def asked_jobs(facts: Facts) -> list[JobFacts]:
    """Without the stages that nobody asked for; all of them where that leaves none."""
    return [job for job in facts.jobs if facts.is_asked(job)] or list(facts.jobs)


def deciding_job(jobs: Sequence[JobFacts]) -> JobFacts | None:
    """The stage that a person asks about: of those without stage.json the one that is alive, else one that was tried, else the first.
    None when every stage is finished."""
    open_ones = [job for job in jobs if job.manifest is None]
    live = [job for job in open_ones if job.is_live]
    touched = [job for job in open_ones if job.is_touched]
    return next(iter([*live, *touched, *open_ones]), None)


def next_stage_not_started(facts: Facts, job: JobFacts) -> Explanation:
    """A stage is done, the next one is untouched."""
    finished = [one for one in facts.jobs if one.manifest is not None]
    if not finished:
        return explain_job(job, run=facts.name)
    said = explain_job(finished[-1], run=facts.name)
    return replace(said, cause=Cause.STAGE_FINISHED, next=Next.SUBMIT, next_stage=job.name)


def explain_job(job: JobFacts, *, run: str) -> Explanation:
    """One job, without words."""
    base = known_of(job, run)
    if (bad := blocking(job)) is not None:
        return replace(unreadable(bad, run=run), **_place(job), read_from=base.read_from, unreadable=job.unreadable)
    if job.manifest is not None:
        done = job.manifest
        # What stage.json says stands, whatever a later attempt did.
        return replace(base, cause=Cause.FINISHED, next=Next.NOTHING, step=done.steps, steps=done.steps, committed_step=done.steps)
    if not job.attempts and not job.submissions:
        return base
    if job.attempts and not job.is_live and base.without_progress >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return gave_up(base, job)
    newest = job.submissions[-1] if job.submissions else None
    if newest is not None and newest.claim.submission > _submission_of(job):
        return pending(base, job, newest)
    attempt = job.attempts[-1]
    return live(base, job, attempt) if attempt.end is None else ended(base, job, attempt.end)


def known_of(job: JobFacts, run: str) -> Explanation:
    """Every fact that holds whatever the cause is."""
    attempt = job.attempts[-1] if job.attempts else None
    cluster, state = job.cluster, job.launcher_state
    asked = (f"launcher {cluster.view}",) if cluster and cluster.state else ()
    return Explanation(
        run=run,
        cause=Cause.NEVER_SUBMITTED,
        next=Next.SUBMIT,
        **_place(job),
        **(_of_attempt(attempt, job.committed_step) if attempt else {}),
        submission=job.submissions[-1].claim.submission if job.submissions else None,
        attempts=len(job.attempts),
        steps_lost_total=sum(one.end.steps_lost for one in job.attempts if one.end),
        without_progress=count_without_progress(job.attempts),
        heartbeat_moved=job.heartbeat.moved,
        watched_s=job.heartbeat.watched_s,
        previous=previous_of(job),
        launcher=job.submissions[-1].claim.launcher if job.submissions else None,
        cluster_phase=state.phase if state else None,
        cluster_reason=state.reason if state else (cluster.unreachable or "") if cluster else "",
        read_from=("bucket", *asked),
        unreadable=job.unreadable,
    )


def count_without_progress(attempts: Sequence[AttemptFacts]) -> int:
    """How many counted attempts in a row committed nothing new (`contract/attempts.py` has the rule). The one in which a supervisor gave
    up is not one of them: it says that there were enough."""
    if not attempts:
        return 0
    newest = attempts[-1]
    tried = attempts[:-1] if newest.end is not None and newest.end.kind == "no_progress" else attempts
    said = newest.end or newest.progress
    reached = max(said.committed_step if said else 0, newest.start.resumed_from_step if newest.start else 0)
    return len(without_progress(((one.number, one.start, one.end) for one in reversed(tried)), reached, at_most=None))


def gave_up(base: Explanation, job: JobFacts) -> Explanation:
    """Too many attempts without a commit. A supervisor that gives up ends an attempt that never ran: what matters is how the one before
    it failed."""
    said = replace(base, cause=Cause.NO_PROGRESS, next=Next.CHANGE, exit_code=int(ExitCode.NO_PROGRESS))
    failed = [one.end for one in job.attempts if one.end is not None and one.end.kind != "no_progress"][-1]
    return replace(
        said,
        step=failed.step,
        committed_step=failed.committed_step,
        steps_lost=failed.steps_lost,
        rank=failed.first_failed_rank,
        node=failed.first_failed_node,
        message=failed.message,
    )


def pending(base: Explanation, job: JobFacts, submission: SubmissionFacts) -> Explanation:
    """A submission that no attempt belongs to yet."""
    said = replace(base, previous=_previous(job.attempts), exit_code=None, attempt=None)
    state = submission.state
    if state is not None and state.state == "ended":
        code = state.exit_code
        fatal = code is not None and 40 <= code <= 49
        cancelled = state.phase == Phase.CANCELLED
        cause = Cause.CANCELLED if cancelled else Cause.NO_PROGRESS if code == ExitCode.NO_PROGRESS else Cause.ENDED_BEFORE_START
        after = Next.NOTHING if cancelled else Next.CHANGE if fatal else Next.RESUBMIT
        return replace(said, cause=cause, next=after, exit_code=code, message=state.reason or "")
    if job.cluster is not None and job.cluster.state is not None and job.cluster.state.phase in PENDING_PHASES:
        cause, after = PENDING_PHASES[job.cluster.state.phase]
        return replace(said, cause=cause, next=after, exit_code=job.cluster.state.exit_code, message=job.cluster.state.reason)
    if state is None:
        return replace(said, cause=Cause.CLAIMED, next=Next.RESUBMIT)
    return replace(said, cause=Cause.QUEUED, next=Next.WAIT)


def live(base: Explanation, job: JobFacts, attempt: AttemptFacts) -> Explanation:
    """The newest attempt has no end: it runs, or it died without a word."""
    cluster = job.launcher_state
    progress = attempt.progress
    lost = max(0, (base.step or 0) - (base.committed_step or 0))
    if cluster is not None and cluster.phase in GONE:
        after = Next.WAIT if cluster.phase in COMING_BACK else Next.UNPAUSE if cluster.phase == Phase.PAUSED else Next.RESUBMIT
        cause = {Phase.CANCELLED: Cause.CANCELLED, Phase.PREEMPTED: Cause.PREEMPTED}.get(cluster.phase, Cause.SUPERVISOR_GONE)
        after = Next.NOTHING if cause == Cause.CANCELLED else after
        return replace(base, cause=cause, next=after, steps_lost=lost, exit_code=cluster.exit_code, message=cluster.reason)
    if job.heartbeat.moved is False:
        return replace(base, cause=Cause.SILENT, next=Next.LOOK, steps_lost=lost)
    if cluster is not None and cluster.phase == Phase.STOPPING:
        return replace(base, cause=Cause.STOPPING, next=Next.WAIT)
    if base.missing_nodes and progress is None:
        return replace(base, cause=Cause.WAITING_FOR_PEERS, next=Next.WAIT)
    if progress is None or progress.step <= (attempt.start.resumed_from_step if attempt.start else 0):
        return replace(base, cause=Cause.STARTING, next=Next.WAIT)
    return replace(base, cause=Cause.RUNNING, next=Next.WAIT)


def ended(base: Explanation, job: JobFacts, end: AttemptEnd) -> Explanation:
    """The newest attempt has an end: its kind is the cause, its exit code and the cluster say what comes next."""
    cause = Cause(end.kind) if end.kind != "done" else Cause.TRAINED if job.is_stage else Cause.FINISHED
    if cause == Cause.STOPPED and was_cancelled(job):
        return replace(base, cause=Cause.CANCELLED, next=Next.NOTHING)
    if cause == Cause.STOPPED and end.steps_lost:
        cause = Cause.STOPPED_UNSAVED
    return replace(base, cause=cause, next=after_end(job, end))


def was_cancelled(job: JobFacts) -> bool:
    """A supervisor only sees a SIGTERM; that somebody cancelled is in the intent log, or the launcher knows it."""
    return job.launcher_state is not None and job.launcher_state.phase == Phase.CANCELLED


def after_end(job: JobFacts, end: AttemptEnd) -> Next:
    """What follows an attempt that ended so."""
    cluster = job.launcher_state
    if end.kind == "done":
        return Next.WAIT if job.is_stage else Next.NOTHING
    if end.kind == "cancelled":
        return Next.NOTHING
    if end.kind == "no_progress" or 40 <= end.exit_code <= 49:
        return Next.CHANGE
    if cluster is not None and cluster.phase in (Phase.PAUSED, Phase.CANCELLED):
        return Next.UNPAUSE if cluster.phase == Phase.PAUSED else Next.NOTHING
    if end.restarts_in_place and not (cluster is not None and cluster.phase.is_terminal):
        return Next.RESTART_IN_PLACE
    return Next.WAIT if cluster is not None and cluster.phase in COMING_BACK else Next.RESUBMIT


def unreadable(bad: Unreadable, *, run: str) -> Explanation:
    """The object that decides cannot be read."""
    cause, after = (Cause.NEWER_FORMAT, Next.UPGRADE) if bad.newer else (Cause.UNREADABLE, Next.REPAIR)
    return Explanation(run=run, cause=cause, next=after, attempt=bad.attempt, message=bad.says, unreadable=(bad,))


def blocking(job: JobFacts) -> Unreadable | None:
    """The unreadable object that keeps us from deciding: any but those of attempts that are over."""
    newest = job.attempts[-1].number if job.attempts else None
    return next((bad for bad in job.unreadable if bad.attempt is None or bad.attempt == newest), None)


def previous_of(job: JobFacts) -> Previous | None:
    """How the attempt before the newest ended, where that is known."""
    return _previous(job.attempts[:-1])


def _previous(attempts: Sequence[AttemptFacts]) -> Previous | None:
    if not attempts or attempts[-1].end is None:
        return None
    end = attempts[-1].end
    cause = Cause.TRAINED if end.kind == "done" else Cause(end.kind)
    return Previous(
        attempt=end.attempt,
        cause=cause,
        step=end.step,
        steps_lost=end.steps_lost,
        rank=end.first_failed_rank,
        node=end.first_failed_node,
        message=end.message,
    )


def _of_attempt(attempt: AttemptFacts, committed_step: int | None) -> dict[str, Any]:
    """What an attempt's own objects say, and the listing of checkpoints where there was one."""
    start, end, progress = attempt.start, attempt.end, attempt.progress
    resumed_from = start.resumed_from_step if start else 0
    known: dict[str, Any] = {
        "attempt": attempt.number,
        "step": progress.step if progress else resumed_from,
        "committed_step": max(progress.committed_step, resumed_from) if progress else resumed_from,
    }
    if committed_step is not None:
        known["committed_step"] = committed_step
    if progress is not None:
        known |= {"steps": progress.steps, "phase": progress.phase, "eta_s": progress.eta_s}
    if start is not None:
        joined = {node.node for node in attempt.nodes}
        known |= {"nodes": start.nodes, "missing_nodes": tuple(sorted(set(range(start.nodes)) - joined)) if end is None else ()}
    if end is not None:
        stack = next((rank.stack for rank in end.ranks if rank.rank == end.first_failed_rank and rank.stack), None)
        known |= {
            "step": end.step,
            "committed_step": end.committed_step,
            "steps_lost": end.steps_lost,
            "rank": end.first_failed_rank,
            "node": end.first_failed_node,
            "exit_code": end.exit_code,
            "message": end.message,
            "stack": stack,
            "eta_s": None,
        }
    return known


def _place(job: JobFacts) -> dict[str, Any]:
    return {"stage": job.name if job.is_stage else None, "job_uri": job.uri}


def _submission_of(job: JobFacts) -> int:
    """The submission of the newest attempt; -1 without attempts, so that any submission is newer. An attempt started by hand (0) counts
    as belonging to the newest submission there was: we cannot know better."""
    if not job.attempts or job.attempts[-1].start is None:
        return -1
    by = job.attempts[-1].start.submission
    return by if by > 0 else job.submissions[-1].claim.submission if job.submissions else 0
