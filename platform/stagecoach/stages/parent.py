"""The checkpoint that a stage starts from: verified before any GPU is asked for (architecture.md section 2)."""

from dataclasses import dataclass, replace
from typing import Literal

from stagecoach.checkpoints import CheckpointRef, latest
from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.verify import verify
from stagecoach.contract.identity import weight_fields
from stagecoach.contract.job import RunRecord, StageManifest
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import Parent, StagePlan
from stagecoach.contract.records import leaves
from stagecoach.errors import CheckpointError, ConfigError

Depth = Literal["quick", "full"]
SHOWN = 5  # differing fields in an error


@dataclass(frozen=True, kw_only=True)
class FoundParent:
    """A checkpoint to start from, not yet verified. `told` is the `stage.json` that names it, where one does."""

    job: JobFolder
    ref: CheckpointRef
    told: StageManifest | None


def find_parent(runs: Runs, run: RunRecord, plan: StagePlan, *, checkpoint: str | None) -> FoundParent | None:
    """Where the stage starts from; None when it has no parent.

    `checkpoint` (--from-checkpoint) is another run's stage folder or checkpoint folder; without it the parent is this run's own stage.
    Raises ConfigError when there is nothing to start from.
    """
    if not isinstance(plan.init, Parent):
        if checkpoint is not None:
            raise ConfigError(f"--from-checkpoint: stage {plan.name} has no parent (init.kind = {plan.init.kind!r}); leave the option away")
        return None
    return _named(checkpoint) if checkpoint is not None else _own(runs, run, plan, plan.init.stage)


def pin_parent(found: FoundParent, plan: StagePlan, *, depth: Depth) -> StagePlan:
    """The plan with `init.checkpoint` and `init.digest` pinned.

    "quick" looks at the manifest's digest and every object's size and stored checksum, "full" reads every byte. Raises CheckpointError
    when the parent is damaged, or of another shape or tokenizer, naming the object or the field.
    """
    digest = verify(found.job, found.ref, level=depth).digest
    if found.told is not None and found.told.checkpoint.digest != digest:
        raise CheckpointError(
            f"{found.job.uri}/stage.json names manifest digest {found.told.checkpoint.digest[:16]}, and {found.ref.uri} has {digest[:16]}: "
            "the checkpoint or stage.json was edited or replaced; restore it from a copy"
        )
    check_same_model(found.job, plan)
    check_same_tokenizer(found.job, plan, found.told)
    assert isinstance(plan.init, Parent)
    return replace(plan, init=replace(plan.init, checkpoint=found.ref.uri, digest=digest))


def _own(runs: Runs, run: RunRecord, plan: StagePlan, parent: str) -> FoundParent:
    """The final checkpoint of the run's own parent stage."""
    job = runs.stage(run, parent)
    told = job.stage()
    if told is None:
        raise ConfigError(
            f"stage {plan.name} starts from stage {parent}, which run {run.run_id} has not finished ({job.uri}/stage.json is not there); "
            "run that stage first, or name another run's checkpoint with --from-checkpoint URI"
        )
    return FoundParent(job=job, ref=checkpoint_at(told.checkpoint.uri)[1], told=told)


def _named(uri: str) -> FoundParent:
    """A checkpoint by its own URI, or the final (else newest) one of the stage whose folder is named."""
    try:
        job, ref = checkpoint_at(uri)
        return FoundParent(job=job, ref=ref, told=None)
    except CheckpointError:  # no checkpoint's address, so a stage's
        job = JobFolder.open(uri.rstrip("/"))
    told = job.stage()
    ref_of_stage = checkpoint_at(told.checkpoint.uri)[1] if told is not None else latest(job)
    if ref_of_stage is None:
        raise ConfigError(f"--from-checkpoint {uri}: no committed checkpoint there; name the folder of a stage or of a checkpoint")
    return FoundParent(job=job, ref=ref_of_stage, told=told)


def check_same_model(parent: JobFolder, plan: StagePlan) -> None:
    """Raises CheckpointError with the first fields in which the parent's model has another shape. Images may be larger than the parent's:
    the trainer interpolates its position embeddings."""
    before = parent.plan()
    if before is None:
        return  # nothing says what shape it has; the ranks compare tensors when they load
    old, new = leaves(weight_fields(before.model)), leaves(weight_fields(plan.model))
    different = [
        f"{path}: parent {old.get(path)}, {plan.name} {new.get(path)}" for path in sorted(old | new) if old.get(path) != new.get(path)
    ]
    if different:
        more = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise CheckpointError(
            f"stage {plan.name} cannot start from {parent.uri}: `model.` differs in {'; '.join(different[:SHOWN])}{more}; "
            "a child has its parent's shapes: set the same values for both"
        )


def check_same_tokenizer(parent: JobFolder, plan: StagePlan, told: StageManifest | None) -> None:
    """Raises CheckpointError when the parent learned other token numbers."""
    before = parent.plan()
    known = (told.fingerprints.get("tokenizer") if told else None) or (before.data.tokenizer_fingerprint if before else None)
    ours = plan.data.tokenizer_fingerprint
    if known is not None and ours is not None and known != ours:
        raise CheckpointError(
            f"stage {plan.name}: data.tokenizer {plan.data.tokenizer} has digest {ours[:16]}, and the parent {parent.uri} was trained with "
            f"{known[:16]}: the same text would be other numbers; use the parent's tokenizer"
        )
