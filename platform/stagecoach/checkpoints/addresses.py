"""What a person may give to name checkpoints: the URI of a job's folder, or of one checkpoint in it."""

import re

from stagecoach.checkpoints.listing import FOLDER, CheckpointRef, checkpoint_ref, latest
from stagecoach.checkpoints.verify import why_none
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError, ConfigError, StagecoachError
from stagecoach.storage import StoreSettings, as_uri

_ONE = re.compile(rf"(?P<job>.+)/{FOLDER}/step-(?P<step>[0-9]{{8,18}})/attempt-(?P<attempt>[1-9][0-9]{{0,17}})")


def find(address: str, *, settings: StoreSettings | None = None) -> tuple[JobFolder, CheckpointRef | None]:
    """The job, and the checkpoint when one is named. A path without a scheme is a folder here.

    Raises ConfigError when nothing of ours is there.
    """
    uri = as_uri(address)
    if not _ONE.fullmatch(uri):
        job = JobFolder.open(uri.removesuffix(f"/{FOLDER}"), settings=settings)
        if not is_job(job):
            raise ConfigError(
                f"{job.uri} is no job's folder: it has no plan.json, no attempts and no checkpoints; `stagecoach runs` lists runs"
            )
        return job, None
    job, ref = checkpoint_at(uri, settings=settings)
    if not job.store.list(ref.key):
        raise ConfigError(f"{ref.uri}: there is no such checkpoint. {why_none(job)}")
    return job, ref


def checkpoint_at(uri: str, *, settings: StoreSettings | None = None) -> tuple[JobFolder, CheckpointRef]:
    """The job and the checkpoint that `uri` names, as `CheckpointRef.uri` does; nothing is read. Raises CheckpointError for another one."""
    match = _ONE.fullmatch(uri.rstrip("/"))
    if match is None:
        raise CheckpointError(f"{uri} is no checkpoint's address; expected {{job}}/{FOLDER}/step-00001000/attempt-1")
    job = JobFolder.open(match["job"], settings=settings)
    return job, checkpoint_ref(job, int(match["step"]), int(match["attempt"]))


def find_one(address: str, *, settings: StoreSettings | None = None) -> tuple[JobFolder, CheckpointRef]:
    """The checkpoint that is named, or the newest of the job. Raises StagecoachError with reasons when none may be read."""
    job, ref = find(address, settings=settings)
    ref = ref or latest(job)
    if ref is None:
        raise StagecoachError(f"none may be read: {why_none(job)}")
    return job, ref


def is_job(job: JobFolder) -> bool:
    folders = job.store.list_folders()
    return FOLDER in folders or "attempts" in folders or any(job.store.exists(name) for name in ("plan.json", "job.json"))
