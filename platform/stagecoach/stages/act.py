"""Acting on a run: cancel, pause, unpause. What was asked stands in the bucket before a job is touched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stagecoach.contract.job import RunRecord, Submission
from stagecoach.contract.launch import Launcher
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError
from stagecoach.launch.submit import settle
from stagecoach.stages.control import Control, Kind


@dataclass(frozen=True)
class Stopped:
    """What stopping a run came to: the stages whose jobs were ended, and whether the hold is new."""

    stages: tuple[str, ...]
    is_new: bool


def run_of(runs: Runs, run_id: str) -> RunRecord:
    """Raises ConfigError when there is no such run."""
    run = runs.run(run_id)
    if run is None:
        raise ConfigError(f"no run {run_id!r} under {runs.store.uri}; `stagecoach runs` lists what is there")
    return run


def stop_run(runs: Runs, run_id: str, kind: Kind, *, launcher_of: Callable[[str], Launcher], reason: str = "") -> Stopped:
    """Holds the run, then ends its open jobs: their ranks get SIGTERM and the grace period, and save. Any number of times.

    Raises ConfigError when there is no such run, or all of it is done; and what a launcher raises.
    """
    run = run_of(runs, run_id)
    if all(runs.stage(run, stage).stage() is not None for stage in run.stages):
        raise ConfigError(f"run {run_id} is finished; there is nothing to {kind}")
    is_new = Control(runs, run_id).hold(kind, reason)
    stopped = [stage for stage, folder in jobs_of(runs, run) if cancel_open(folder, launcher_of=launcher_of)]
    return Stopped(tuple(stopped), is_new)


def jobs_of(runs: Runs, run: RunRecord) -> Iterator[tuple[str, JobFolder]]:
    """Every stage's job, and the evaluations beside it: (what it is, its folder)."""
    for stage in run.stages:
        folder = runs.stage(run, stage)
        yield stage, folder
        for suite in folder.store.list_folders("evaluation"):
            yield f"{stage} evaluation {suite}", JobFolder(folder.store.child(f"evaluation/{suite}"))


def cancel_open(folder: JobFolder, launcher: Launcher | None = None, *, launcher_of: Callable[[str], Launcher] | None = None) -> bool:
    """Cancels the newest submission if it is open. False when nothing ran. The end is noted in the intent log."""
    newest: Submission | None = next(reversed(folder.submissions()), None)
    state = folder.submission_state(newest.submission) if newest is not None else None
    if newest is None or (state is not None and state.state == "ended"):
        return False
    chosen = launcher if launcher is not None else launcher_of(newest.launcher) if launcher_of is not None else None
    handle = chosen.attach(newest.name) if chosen is not None else None
    if chosen is None or handle is None:
        return False
    chosen.cancel(handle)
    settle(chosen, folder, newest)
    return True


def unpause(runs: Runs, run_id: str) -> bool:
    """Lifts the pause. False when there was none. Starting again is another's: `stagecoach resume`, or the scheduled flow."""
    run_of(runs, run_id)
    return Control(runs, run_id).lift("pause")
