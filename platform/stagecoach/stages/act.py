"""Acting on a run: cancel, pause, unpause. What was asked stands in the bucket before a job is touched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stagecoach.constants import Phase
from stagecoach.contract.job import RunRecord, Submission
from stagecoach.contract.launch import Launcher, PausingLauncher, RunHandle
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError
from stagecoach.launch.submit import settle
from stagecoach.stages.control import Control, Kind, RunHeld


@dataclass(frozen=True)
class Stopped:
    """What stopping a run came to: the stages whose jobs were ended, those whose jobs are kept and go on later, and whether the hold is
    new."""

    stages: tuple[str, ...]
    kept: tuple[str, ...]
    is_new: bool


@dataclass(frozen=True)
class Unpaused:
    """What letting a run go on came to: the stages whose jobs were kept and wait for a place again, and whether the run was paused."""

    stages: tuple[str, ...]
    was_paused: bool


@dataclass(frozen=True)
class OpenJob:
    """A submission that has not ended, where its launcher knows the job."""

    launcher: Launcher
    handle: RunHandle
    submission: Submission


def run_of(runs: Runs, run_id: str) -> RunRecord:
    """Raises ConfigError when there is no such run."""
    run = runs.run(run_id)
    if run is None:
        raise ConfigError(f"no run {run_id!r} under {runs.store.uri}; `stagecoach runs` lists what is there")
    return run


def stop_run(runs: Runs, run_id: str, kind: Kind, *, launcher_of: Callable[[str], Launcher], reason: str = "") -> Stopped:
    """Holds the run, then takes its open jobs' places away: their ranks get SIGTERM and the grace period, and save. Any number of times.
    A pause keeps the job where its launcher can (`PausingLauncher`); else the job ends, and the next submission goes on. Of a run whose
    asked stages are finished evaluations can be cancelled; it is not held.

    Raises ConfigError when there is no such run, or all of it is done; and what a launcher raises.
    """
    run = run_of(runs, run_id)
    stages = run.stages if kind == "pause" else asked_of(runs, run)  # a pause also holds stages that somebody may ask for later
    is_finished = all(runs.stage(run, stage).stage() is not None for stage in stages)
    if is_finished and kind == "pause":
        raise ConfigError(f"run {run_id} is finished; there is nothing to pause")
    is_new = is_finished or Control(runs, run_id).hold(kind, reason)
    stopped: list[str] = []
    kept: list[str] = []
    for stage, folder in jobs_of(runs, run):
        job = open_job(folder, launcher_of)
        if job is not None:
            (kept if stop_job(folder, job, kind, reason) else stopped).append(stage)
    if is_finished and not stopped:
        raise ConfigError(f"run {run_id} is finished; there is nothing to cancel")
    return Stopped(tuple(stopped), tuple(kept), is_new)


def asked_of(runs: Runs, run: RunRecord) -> tuple[str, ...]:
    """The stages that the run was last asked for: all of its recipe's, where nobody named some."""
    request = Control(runs, run.run_id).request()
    return request.stages if request is not None and request.stages else run.stages


def jobs_of(runs: Runs, run: RunRecord) -> Iterator[tuple[str, JobFolder]]:
    """Every stage's job, and the evaluations beside it: (what it is, its folder)."""
    for stage in run.stages:
        yield from jobs_of_stage(stage, runs.stage(run, stage))


def jobs_of_stage(stage: str, folder: JobFolder) -> Iterator[tuple[str, JobFolder]]:
    """The stage's job, and the evaluations beside it."""
    yield stage, folder
    for suite in folder.store.list_folders("evaluation"):
        yield f"{stage} evaluation {suite}", JobFolder(folder.store.child(f"evaluation/{suite}"))


def open_job(folder: JobFolder, launcher_of: Callable[[str], Launcher]) -> OpenJob | None:
    """The newest submission if it is open. None when nothing runs: an end that nobody saw is noted. Raises what a launcher raises."""
    newest: Submission | None = next(reversed(folder.submissions()), None)
    state = folder.submission_state(newest.submission) if newest is not None else None
    if newest is None or (state is not None and state.state == "ended"):
        return None
    launcher = launcher_of(newest.launcher)
    handle = launcher.attach(newest.name) if settle(launcher, folder, newest) is None else None
    return OpenJob(launcher, handle, newest) if handle is not None else None


def stop_job(folder: JobFolder, job: OpenJob, kind: Kind, reason: str) -> bool:
    """Takes its place away. True when the job is kept and goes on later: paused, where its launcher can."""
    if kind == "pause" and isinstance(job.launcher, PausingLauncher):
        job.launcher.pause(job.handle, because=reason)
        return True
    end_job(folder, job)
    return False


def stop_if_held(check: Callable[[], None], folder: JobFolder, launcher: Launcher) -> None:
    """A hold that came while the job was submitted: whoever set it saw no job yet. Raises RunHeld then."""
    try:
        check()
    except RunHeld as held:
        job = open_job(folder, lambda _: launcher)
        if job is not None:
            stop_job(folder, job, held.hold.kind, held.hold.reason)
        raise


def end_job(folder: JobFolder, job: OpenJob) -> None:
    """Cancels it; the end is noted in the intent log."""
    job.launcher.cancel(job.handle)
    settle(job.launcher, folder, job.submission)


def cancel_open(folder: JobFolder, launcher: Launcher) -> bool:
    """Cancels the newest submission if it is open. False when nothing ran."""
    job = open_job(folder, lambda _: launcher)
    if job is not None:
        end_job(folder, job)
    return job is not None


def unpause(runs: Runs, run_id: str, *, launcher_of: Callable[[str], Launcher]) -> Unpaused:
    """Lets jobs that a pause kept go on, then lifts the pause, so that a crash between the two leaves a run that is still paused. Any
    number of times. Watching it is another's: `stagecoach resume`, or the scheduled flow.

    Raises ConfigError when there is no such run; and what a launcher raises.
    """
    run = run_of(runs, run_id)
    let_go = []
    for stage, folder in jobs_of(runs, run):
        job = open_job(folder, launcher_of)
        if job is None or not isinstance(job.launcher, PausingLauncher):
            continue
        if job.launcher.describe(job.handle).phase in (Phase.PAUSED, Phase.STOPPING):
            job.launcher.unpause(job.handle)
            let_go.append(stage)
    return Unpaused(tuple(let_go), Control(runs, run_id).lift("pause"))
