"""Submitting so that a crash at any line neither loses nor doubles a job (reliability.md section 4).

The intent log of a job's folder: `submissions/{k}.json` (claimed, before the launcher is asked) -> `{k}.submitted.json` (the launcher has
it) -> `{k}.ended.json` (how it ended). Whoever comes later, after a crash or beside us, reads it and does what is left to do.
"""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loguru import logger

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.attempts import bad_machines
from stagecoach.contract.job import Submission, SubmissionState
from stagecoach.contract.launch import JobState, Launcher, LaunchSpec, NameTaken, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import to_plain, validate
from stagecoach.errors import ClusterUnavailable, ContractError, RunFailed
from stagecoach.launch.differences import name_taken, spec_differences
from stagecoach.launch.local_state import now

POLL_S = 0.5
UNKNOWN_FOR_S = 30.0
AWAY = "the cluster does not answer: "
OF_THE_SITE = ("image", "environment", "secrets", "queue", "priority", "grace_s")  # of a LaunchSpec: what an upgrade may change under a job
_NUMBER = re.compile(r"-s\d+$")


def submit_job(launcher: Launcher, job: JobFolder, spec: LaunchSpec, *, after_fatal: bool = False) -> RunHandle:
    """Attaches to the open submission, completes one that a crash left half-way, or makes the next one; any number of callers at once.

    `spec` says what is wanted; its `submission` and the `-s{k}` of its name are set here. A submission that ended with 75 or 143 is
    followed by the next one; one that is done is attached to. An open one keeps what the site was when it was submitted (OF_THE_SITE).
    Raises NameTaken when an open submission has another spec or launcher, RunFailed when the last one ended with 40-49 (nobody retries that
    unless `after_fatal` says that the cause was removed), and what `launcher.submit` raises.
    """
    while True:
        newest = next(reversed(job.submissions()), None)
        ended = settle(launcher, job, newest) if newest else None
        if newest and ended is None:
            _check_same(launcher, newest, spec)
            logger.info("{}", who_holds(job, newest))
            return _hand_over(launcher, job, _spec_of(newest, job))
        if newest and ended:
            if ended.exit_code == ExitCode.DONE:
                return RunHandle(launcher=newest.launcher, name=newest.name, job_uri=job.uri, uid=ended.handle)
            _check_retried(newest, ended, job, after_fatal=after_fatal)
        numbered = without_bad_machines(launcher, job, with_number(spec, newest.submission + 1 if newest else 1))
        if job.claim_submission(_submission(launcher, numbered)):
            return _hand_over(launcher, job, numbered)
        # Another caller took this number: look again, and attach to its job.


def settle(launcher: Launcher, job: JobFolder, submission: Submission) -> SubmissionState | None:
    """How a submission ended, written to the intent log if its watcher could not; None while it is open.

    A job that the launcher does not know (never created, or its state was lost) is open: submitting it again creates it.
    """
    state = job.submission_state(submission.submission)
    if state is not None and state.state == "ended":
        return state
    handle = launcher.attach(submission.name) if launcher.name == submission.launcher else None
    if handle is None:
        return None
    seen = launcher.describe(handle)
    return note_end(job, submission.submission, handle, seen) if seen.phase.is_terminal else None


def wait_job(
    launcher: Launcher,
    job: JobFolder,
    handle: RunHandle,
    submission: int,
    *,
    poll_s: float = POLL_S,
    on_state: Callable[[JobState], None] = lambda _: None,
    on_poll: Callable[[], None] = lambda: None,
) -> JobState:
    """Watches until the job has ended, writes that to the intent log, and returns the last state. `on_state` is told of every change,
    `on_poll` is called at every look.

    A cluster that does not answer is waited for, however long: the job does not need it. Raises RunFailed when the launcher has not known
    the job for UNKNOWN_FOR_S (somebody deleted it).
    """
    last, known_at = None, time.monotonic()
    while True:
        state = look(launcher, handle)
        if state != last:
            on_state(state)
        on_poll()
        if state.phase.is_terminal:
            note_end(job, submission, handle, state)
            return state
        if state.phase != Phase.UNKNOWN or state.reason.startswith(AWAY):
            known_at = time.monotonic()
        elif time.monotonic() - known_at > UNKNOWN_FOR_S:
            raise RunFailed(f"{handle.name!r} is gone from launcher {launcher.name!r}: {state.reason}", run_id=handle.name, log_uri=job.uri)
        last = state
        time.sleep(poll_s)


def look(launcher: Launcher, handle: RunHandle) -> JobState:
    """How the job is, tended to where the launcher can; UNKNOWN with AWAY for a reason while the cluster does not answer."""
    try:
        state = launcher.describe(handle)
        tend: Callable[[RunHandle], None] | None = getattr(launcher, "tend", None)
        if tend is not None and not state.phase.is_terminal:
            tend(handle)
        return state
    except ClusterUnavailable as error:
        return JobState(phase=Phase.UNKNOWN, reason=f"{AWAY}{error}")


def note_end(job: JobFolder, submission: int, handle: RunHandle, state: JobState) -> SubmissionState:
    """Writes how a submission ended. Idempotent: the first word stands, and is returned."""
    ended = SubmissionState(
        submission=submission,
        state="ended",
        handle=handle.uid,
        phase=state.phase,
        exit_code=state.exit_code,
        reason=state.reason,
        at=now(),
    )
    job.write_submission_state(ended)
    return job.submission_state(submission) or ended


def with_number(spec: LaunchSpec, submission: int) -> LaunchSpec:
    """The spec as submission k: its name ends with `-s{k}`."""
    return replace(spec, submission=submission, name=f"{_NUMBER.sub('', spec.name)}-s{submission}")


def without_bad_machines(launcher: Launcher, job: JobFolder, spec: LaunchSpec) -> LaunchSpec:
    """The spec, less machines on which earlier attempts failed first again and again; for launchers that choose machines."""
    if not getattr(launcher, "chooses_machines", False):
        return spec
    ends = (job.attempt_end(number) for number in reversed(job.attempt_numbers()))
    excluded = sorted({*spec.excluded_nodes, *bad_machines(ends)})
    return replace(spec, excluded_nodes=tuple(excluded))


def who_holds(job: JobFolder, newest: Submission) -> str:
    """A sentence for whoever asks for a job that is under way already: whose it is, and where it runs (reliability.md B49)."""
    submitted = f"{newest.name!r} was submitted to launcher {newest.launcher!r} at {newest.created_at} and has not ended"
    start = job.newest_attempt()
    if start is None or start.submission != newest.submission:
        return f"{submitted}; attached to it, no attempt of it has begun yet"
    return f"{submitted}; attached to it: attempt {start.attempt} began at {start.started_at}, led from {start.leader_host}"


def _hand_over(launcher: Launcher, job: JobFolder, spec: LaunchSpec) -> RunHandle:
    """Create-or-attach by name: the claim's spec is what counts, so that every caller asks for the same."""
    handle = launcher.submit(spec)
    job.write_submission_state(SubmissionState(submission=spec.submission, state="submitted", handle=handle.uid, at=now()))
    return handle


def _submission(launcher: Launcher, spec: LaunchSpec) -> Submission:
    return Submission(
        submission=spec.submission,
        name=spec.name,
        launcher=launcher.name,
        spec_digest=spec.digest,
        spec=to_plain(spec),
        created_at=now(),
    )


def _spec_of(submission: Submission, job: JobFolder) -> LaunchSpec:
    return validate(LaunchSpec, submission.spec, where=f"{job.uri}: submission {submission.submission}", error=ContractError)


def _check_same(launcher: Launcher, newest: Submission, spec: LaunchSpec) -> None:
    if newest.launcher != launcher.name:
        raise NameTaken(
            f"{newest.name!r} was submitted to launcher {newest.launcher!r} and has not ended; asked now: {launcher.name!r}. "
            f"Use --launcher {newest.launcher} to attach to it, or cancel it first"
        )
    there = validate(LaunchSpec, newest.spec, where=newest.name, error=ContractError)
    decided: dict[str, Any] = {"excluded_nodes": there.excluded_nodes}  # when it was claimed, from what the ledger said then
    wanted = replace(with_number(spec, newest.submission), **decided)
    if replace(wanted, **{name: getattr(there, name) for name in OF_THE_SITE}) != there:  # not by digest: a version may add a field
        raise name_taken(newest.name, there, wanted)
    if wanted != there:
        differences = "; ".join(spec_differences(there, wanted))
        logger.warning(
            "{} goes on as it was submitted, the site has changed since ({}); the next submission follows", newest.name, differences
        )


def _check_retried(newest: Submission, ended: SubmissionState, job: JobFolder, *, after_fatal: bool) -> None:
    code = ended.exit_code
    if code is not None and 40 <= code <= 49 and not after_fatal:
        raise RunFailed(
            f"{newest.name!r} ended with {code} ({ended.reason or 'no reason given'}), which is never retried; "
            "remove the cause, then ask again with --after-fatal",
            run_id=newest.name,
            job_exit_code=code,
            log_uri=job.uri,
        )
