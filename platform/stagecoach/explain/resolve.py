"""What a person means by RUN: a run's id, a job's name, or the URI of either's folder."""

import difflib
from dataclasses import dataclass

from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError, ContractError, NewerFormat
from stagecoach.explain.records import Unreadable
from stagecoach.storage import ObjectCorrupt, StoreSettings

PERSON = StoreSettings(deadline_s=30.0)  # somebody waits for the answer, and can ask again: a job is far more patient
FOLDERS_OF_A_JOB = ("attempts", "submissions")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A job's folder and what it is called."""

    name: str
    folder: JobFolder
    is_stage: bool


@dataclass(frozen=True, kw_only=True)
class Target:
    """What RUN named. `run` is None for a job that belongs to no run."""

    name: str
    uri: str
    run: RunRecord | None
    places: tuple[Place, ...]
    runs: Runs | None = None  # where its control objects are
    unreadable: tuple[Unreadable, ...] = ()


def find(name: str, *, root: str) -> Target:
    """The run or job called `name` under `root`, or at the URI `name`. Raises ConfigError with the nearest names when there is none."""
    if "://" in name:
        return find_uri(name.rstrip("/"))
    if "/" in name or name.strip() in ("", ".", ".."):
        raise ConfigError(f"RUN {name!r}: give a run's id, a job's name (`stagecoach runs` lists both) or the URI of its folder")
    runs = Runs.open(root, settings=PERSON)
    target = _run(runs, name) or _job(runs, name)
    if target is None:
        raise ConfigError(unknown(name, runs))
    return target


def find_uri(uri: str) -> Target:
    """The run or the job whose folder `uri` is. Raises ConfigError when it is neither."""
    above, _, name = uri.rpartition("/")
    root, _, kind = above.rpartition("/")
    if kind in ("runs", "jobs"):
        return find(name, root=root)
    folder = JobFolder.open(uri, settings=PERSON)
    if not is_job(folder):
        raise ConfigError(f"{uri} is no run and no job: it has neither run.json, job.json, plan.json nor attempts/; name the folder itself")
    return Target(name=name, uri=uri, run=None, places=(Place(name=name, folder=folder, is_stage=kind == "stages"),))


def is_job(folder: JobFolder) -> bool:
    """True when anything of a job is there."""
    if any(folder.store.list(prefix) for prefix in FOLDERS_OF_A_JOB):
        return True
    return any(folder.store.exists(key) for key in ("job.json", "plan.json"))


def only_stage(target: Target, stage: str) -> Target:
    """The target with one stage only. Raises ConfigError with the stages there are."""
    kept = tuple(place for place in target.places if place.name == stage)
    if not kept:
        known = ", ".join(place.name for place in target.places)
        raise ConfigError(f"{target.name} has no stage {stage!r}; it has: {known or 'none'}")
    return Target(name=target.name, uri=target.uri, run=target.run, places=kept, runs=target.runs, unreadable=target.unreadable)


def unknown(name: str, runs: Runs) -> str:
    """A sentence with the nearest names."""
    known = [*runs.ids(), *runs.job_names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        hint = "; did you mean " + " or ".join(f"`{match}`" for match in near) + "?"
    else:
        hint = "; `stagecoach runs` lists what is there" if known else "; there are no runs and no jobs yet"
    return f"no run or job `{name}` under {runs.store.uri}{hint}"


def _run(runs: Runs, name: str) -> Target | None:
    uri = runs.store.uri_of(f"runs/{name}")
    try:
        run = runs.run(name)
    except (ContractError, ObjectCorrupt) as error:
        bad = Unreadable(uri=f"{uri}/run.json", says=str(error), newer=isinstance(error, NewerFormat))
        return Target(name=name, uri=uri, run=None, places=(), unreadable=(bad,))
    if run is None:
        return None
    places = tuple(Place(name=stage, folder=runs.stage(run, stage), is_stage=True) for stage in run.stages)
    return Target(name=name, uri=uri, run=run, places=places, runs=runs)


def _job(runs: Runs, name: str) -> Target | None:
    folder = runs.job(name)
    if not is_job(folder):
        return None
    return Target(name=name, uri=folder.uri, run=None, places=(Place(name=name, folder=folder, is_stage=False),))
