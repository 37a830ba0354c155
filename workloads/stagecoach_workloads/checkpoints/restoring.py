"""Which checkpoint all ranks restore, and what becomes of a bad one."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from loguru import logger

from stagecoach.checkpoints import CheckpointRef, Lease, State, candidates, checkpoint_ref, list_checkpoints, quarantine, why_none
from stagecoach.contract.checkpoint import CheckpointManifest
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach_workloads.checkpoints.agreement import Agreed, Verdict, agree, from_rank_0, raise_agreed
from stagecoach_workloads.checkpoints.settings import CheckpointSettings
from stagecoach_workloads.rank import RankContext

T = TypeVar("T")


def restore_newest(job: JobFolder, context: RankContext, settings: CheckpointSettings, load: Callable[[CheckpointRef], T]) -> T | None:
    """load(ref) of the newest checkpoint that is good on every rank; rank 0 chooses, and holds a lease while all read."""
    with Lease(job, f"attempt-{context.attempt}") as lease:
        for _ in range(settings.max_fall_backs + 1):
            words = from_rank_0(lambda: _choose(job, lease)).decode()
            if not words:
                return None
            step, attempt = map(int, words.split())
            ref, loaded, error = checkpoint_ref(job, step, attempt), None, None
            try:
                loaded = load(ref)
            except Exception as raised:
                error = raised
            agreed = agree(error)
            if agreed.verdict == Verdict.GOOD:
                return loaded
            if agreed.verdict != Verdict.DAMAGED:
                raise_agreed(agreed, error)
            from_rank_0(lambda ref=ref, agreed=agreed: _put_away(job, context, ref, agreed))  # type: ignore[misc]
    raise CheckpointError(
        f"{job.uri}: {settings.max_fall_backs + 1} checkpoints in a row were damaged, so more than a checkpoint is wrong: look at the "
        f"bucket, then start again. The last: {agreed.message}"
    )


def check_fingerprints(manifest: CheckpointManifest, here: Mapping[str, str]) -> None:
    """Raises CheckpointError when the checkpoint was trained with another tokenizer, model or data than this run has."""
    other = [
        f"{name} {manifest.fingerprints[name][:16]} in the checkpoint, {here[name][:16]} here"
        for name in sorted(here)
        if name in manifest.fingerprints and manifest.fingerprints[name] != here[name]
    ]
    if other:
        raise CheckpointError(
            f"step {manifest.step} of {manifest.job_uri} has other fingerprints: {'; '.join(other)}; fork the run to change them"
        )


def _choose(job: JobFolder, lease: Lease) -> bytes:
    """ "{step} {attempt}" of the newest on offer, held by the lease; nothing when none was ever committed."""
    for ref in candidates(job):
        if lease.hold(ref):
            return f"{ref.step} {ref.attempt}".encode()
    if any(found.state == State.QUARANTINED for found in list_checkpoints(job)):
        raise CheckpointError(f"none can be restored, and starting over would lose what was trained. {why_none(job)}")
    return b""


def _put_away(job: JobFolder, context: RankContext, ref: CheckpointRef, agreed: Agreed) -> bytes:
    """Nobody is offered it again."""
    why = f"found by rank {agreed.rank} of attempt {context.attempt}: {agreed.message}"
    logger.error("{} is damaged and quarantined; the one before it is taken. {}", ref.uri, why)
    quarantine(job, ref, why)
    context.event("checkpoint_quarantined", {"step": ref.step, "attempt": ref.attempt, "why": why})
    return b""
