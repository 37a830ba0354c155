"""Where weights come from at step 0: random numbers, Hugging Face folders, or another stage's last checkpoint."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.manifest import read_manifest
from stagecoach.contract.checkpoint import CheckpointManifest
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

POSITIONS = ("encoder.position", "connector.position")  # by grid of patches; the C-Abstractor has its own


def begin(model: MultimodalModel, plan: StagePlan, checkpoints: Checkpoints, beat: Callable[[], object] = lambda: None) -> None:
    """Fills a sharded model with its first weights, the same ones for every number of ranks. All ranks call it together. `beat` is called
    for each tensor: of a large model they take longer than a rank may be silent.

    Raises ConfigError or CheckpointError for weights that are not this model's, on all ranks.
    """
    init_weights(model, plan.seed, beat)
    if isinstance(plan.init, Pretrained):
        together(lambda init=plan.init: import_pretrained(model, init, beat))  # type: ignore[misc]
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
    for name, value in resized.items():
        assign(model.get_parameter(name), interpolated(name, value, model))


def places(model: MultimodalModel, manifest: CheckpointManifest) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Where each tensor of the parent goes, and those of them that are memory for positions of another resolution."""
    theirs = {entry.name: tuple(entry.shape) for entry in manifest.tensors if entry.part == "model"}
    ours: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    into: dict[str, Tensor] = {name: value.detach() for name, value in ours.items() if name in theirs or ".lora_" not in name}
    resized = {
        name: torch.empty(theirs[name], dtype=ours[name].dtype)
        for name in POSITIONS
        if name in theirs and name in ours and is_another_grid(theirs[name], tuple(ours[name].shape))
    }
    return into | resized, resized  # any other difference is told by loading


def is_another_grid(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """The same but for the number of positions, which comes before the width."""
    return len(there) == len(here) and there[-2] != here[-2] and (*there[:-2], there[-1]) == (*here[:-2], here[-1])


def interpolated(name: str, position: Tensor, model: MultimodalModel) -> Tensor:
    """The parent's positions (... P V) on our grid. Raises CheckpointError when they are no square grid (beside a class token)."""
    rows = position.shape[-2]
    extra = 1 if name == "encoder.position" and model.encoder.class_embedding is not None else 0
    side = math.isqrt(rows - extra)
    if side**2 + extra != rows:
        raise CheckpointError(f"{name} of the parent has {rows} rows, no square grid; its encoder is of another layout")
    here = model.encoder.side
    return interpolate_positions(position.reshape(rows, -1), side, here, here).reshape(*position.shape[:-2], here**2 + extra, -1)


def together(act: Callable[[], object]) -> None:
    """Does something that may fail on one rank only; then all raise, and nobody waits for ever."""
    error: Exception | None = None
    try:
        act()
    except Exception as raised:
        error = raised
    raise_agreed(agree(error), error)
