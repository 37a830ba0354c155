"""Where weights come from at step 0: random numbers, Hugging Face folders, or another stage's last checkpoint."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stagecoach.checkpoints.listing import CheckpointRef, checkpoint_ref
from stagecoach.checkpoints.manifest import read_manifest
from stagecoach.contract.checkpoint import CheckpointManifest
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import Parent, Pretrained, StagePlan
from stagecoach.errors import CheckpointError, ConfigError
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.agreement import agree, raise_agreed
from stagecoach_workloads.checkpoints.state import CheckpointState
from stagecoach_workloads.models.build import init_weights
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.vit import interpolate_positions
from stagecoach_workloads.weights.importing import import_pretrained
from stagecoach_workloads.weights.loading import assign

POSITION = "encoder.position"
_FOLDER = re.compile(r"(?P<job>.+)/checkpoints/step-(?P<step>[0-9]{8,18})/attempt-(?P<attempt>[0-9]+)/?")


def begin(model: MultimodalModel, plan: StagePlan, checkpoints: Checkpoints) -> None:
    """Fills a sharded model with its first weights, the same ones for every number of ranks. All ranks call it together.

    Raises ConfigError or CheckpointError for weights that are not this model's, on all ranks.
    """
    init_weights(model, plan.seed)
    if isinstance(plan.init, Pretrained):
        together(lambda init=plan.init: import_pretrained(model, init))  # type: ignore[misc]
    elif isinstance(plan.init, Parent):
        together(lambda init=plan.init: take_from_parent(model, init, checkpoints))  # type: ignore[misc]


def take_from_parent(model: MultimodalModel, init: Parent, checkpoints: Checkpoints) -> None:
    """Loads the parent's weights, and nothing else of it. New adapters keep their first values; positions of another resolution are
    interpolated. Raises CheckpointError when the manifest is not the one that was pinned, or a tensor is missing or of another shape."""
    if init.checkpoint is None:
        raise ConfigError("init.checkpoint is not pinned in plan.json; `stagecoach run-stage` pins it once the parent stage is done")
    job, ref = checkpoint_at(init.checkpoint)
    manifest, digest = read_manifest(job, ref)
    if init.digest is not None and digest != init.digest:
        raise CheckpointError(
            f"{ref.uri}/MANIFEST.json has SHA-256 {digest[:16]} and init.digest is {init.digest[:16]}: it was replaced since"
        )
    into, resized = places(model, manifest)
    checkpoints.load(ref, CheckpointState(model=into, optimizer={}), parts=("model",))
    if resized is not None:
        assign(model.get_parameter(POSITION), interpolated(resized, model))


def places(model: MultimodalModel, manifest: CheckpointManifest) -> tuple[dict[str, Tensor], Tensor | None]:
    """Where each tensor of the parent goes, and the memory for positions of another resolution (None: they are ours)."""
    theirs = {entry.name: entry.shape for entry in manifest.tensors if entry.part == "model"}
    ours: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    into: dict[str, Tensor] = {name: value.detach() for name, value in ours.items() if name in theirs or ".lora_" not in name}
    shape, here = theirs.get(POSITION), tuple(ours[POSITION].shape)
    if shape is None or tuple(shape) == here or len(shape) != 2 or shape[1] != here[1]:
        return into, None  # any other difference is told by loading
    resized = torch.empty(tuple(shape), dtype=ours[POSITION].dtype)
    return {**into, POSITION: resized}, resized


def interpolated(position_PV: Tensor, model: MultimodalModel) -> Tensor:
    """The parent's positions on our grid. Raises CheckpointError when they are no square grid (beside a class token)."""
    extra = 0 if model.encoder.class_embedding is None else 1
    side = round((position_PV.shape[0] - extra) ** 0.5)
    if side**2 + extra != position_PV.shape[0]:
        raise CheckpointError(f"{POSITION} of the parent has {position_PV.shape[0]} rows, no square grid; its encoder is of another layout")
    return interpolate_positions(position_PV, side, model.encoder.side, model.encoder.side)


def checkpoint_at(uri: str) -> tuple[JobFolder, CheckpointRef]:
    """The job and the checkpoint of a folder's URI."""
    match = _FOLDER.fullmatch(uri)
    if match is None:
        raise CheckpointError(f"init.checkpoint={uri} is no checkpoint's folder (…/checkpoints/step-00000000/attempt-1)")
    job = JobFolder.open(match["job"])
    return job, checkpoint_ref(job, int(match["step"]), int(match["attempt"]))


def together(act: Callable[[], object]) -> None:
    """Does something that may fail on one rank only; then all raise, and nobody waits for ever."""
    error: Exception | None = None
    try:
        act()
    except Exception as raised:
        error = raised
    raise_agreed(agree(error), error)
