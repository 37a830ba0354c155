"""A training checkpoint as a source of weights, whatever the number of ranks that wrote it, and its export as a folder."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.checkpoints import CheckpointRef, Lease, Verified, verify
from stagecoach.checkpoints.tensors import read_tensor
from stagecoach.contract.checkpoint import CheckpointManifest, TensorEntry
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.contract.plan import Pretrained, StagePlan
from stagecoach.errors import CheckpointError, ConfigError, ContractError
from stagecoach_workloads.checkpoints.state import torch_dtype
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.lora import merge_lora
from stagecoach_workloads.weights.card import ModelFacts
from stagecoach_workloads.weights.exporting import export_model
from stagecoach_workloads.weights.loading import assign
from stagecoach_workloads.weights.sources import TensorsInMemory, TensorSource

_IN_RUN = re.compile(r"(?P<root>.+)/runs/(?P<run>[^/]+)/stages/[^/]+")


class CheckpointTensors:
    """The model's tensors of one checkpoint; the optimizer's are left out. A tensor is read when it is asked for."""

    def __init__(self, job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest) -> None:
        self.uri = ref.uri
        self._job, self._ref = job, ref
        self._entries: dict[str, TensorEntry] = {entry.name: entry for entry in manifest.tensors if entry.part == "model"}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, sorted by name."""
        return {name: self._entries[name].shape for name in sorted(self._entries)}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, on the CPU. All of it is fetched."""
        entry = self._entries[name]
        body = bytearray(read_tensor(self._job, self._ref, entry))
        if not body:
            return torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
        tensor = torch.frombuffer(body, dtype=torch_dtype(entry.dtype)).view(entry.shape)
        return tensor[start:stop] if entry.shape else tensor


def export_checkpoint(
    job: JobFolder, ref: CheckpointRef, output: str, *, tokenizer: str | None = None, name: str | None = None
) -> Verified:
    """Writes the model of a checkpoint to `output`: safetensors, config, tokenizer, model card; adapters merged.

    Every byte is proven first, under a lease. Raises ConfigError when the job has no plan or the tokenizer is not to be found, and
    CheckpointError when the checkpoint is damaged or does not fit its plan.
    """
    plan = job.plan()
    if plan is None:
        raise ConfigError(f"{job.uri} has no plan.json, so it is not known which model this is")
    with Lease(job, f"export-{ref.step}-{ref.attempt}") as lease:
        if not lease.hold(ref):
            raise CheckpointError(f"{ref.uri} is not committed, or was found bad; `stagecoach checkpoint list {job.uri}` says more")
        verified = verify(job, ref, level="full")
        source = CheckpointTensors(job, ref, verified.manifest)
        _check_fits(source, plan.model)
        facts = facts_of(job, plan, ref.step, name)
        export_model(merged(source, plan.model), plan.model, output, facts=facts, tokenizer=tokenizer or tokenizer_folder(plan))
    return verified


def merged(source: TensorSource, plan: ModelPlan) -> TensorSource:
    """The source itself; a model with adapters is built, and they are folded into its weights."""
    if plan.lora is None:
        return source
    model = build_model(plan, seed=None)
    for name, parameter in model.named_parameters():
        assign(parameter, source.read(name))
    merge_lora(model)
    return TensorsInMemory({name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}, source.uri)


def facts_of(job: JobFolder, plan: StagePlan, step: int, name: str | None) -> ModelFacts:
    """What the model card tells beyond the plan's model."""
    stage, recipe = job.stage(), recipe_of(job)
    bases = tuple(uri for uri in (plan.init.encoder, plan.init.decoder) if uri) if isinstance(plan.init, Pretrained) else ()
    is_final = stage is not None and stage.steps == step
    return ModelFacts(
        name=name or "-".join(part for part in (recipe, plan.name) if part),
        recipe=recipe,
        stage=plan.name,
        steps=step,
        base_models=bases,
        datasets=tuple(dataset.name for dataset in plan.data.datasets),
        metrics=tuple(sorted(stage.metrics.items())) if stage is not None and is_final else (),
    )


def recipe_of(job: JobFolder) -> str:
    """Of the run that the job is a stage of; "" when it is none."""
    match = _IN_RUN.fullmatch(job.uri)
    try:
        run = Runs.open(match["root"]).run(match["run"]) if match else None
    except ContractError:
        return ""
    return run.recipe if run else ""


def tokenizer_folder(plan: StagePlan) -> str | None:
    """The folder of the tokenizer that the plan pins, or None: then the export has none, and --tokenizer brings one."""
    uri = plan.data.tokenizer
    if uri is None:
        return plan.init.decoder if isinstance(plan.init, Pretrained) else None
    return uri.removesuffix("/tokenizer.json")


def _check_fits(source: CheckpointTensors, plan: ModelPlan) -> None:
    """Raises CheckpointError when the checkpoint's tensors are not those of the plan's model."""
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in build_model(plan, device="meta", seed=None).named_parameters()}
    found = dict(source.shapes())
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        told = [f"{name} is {_shown(found.get(name))} there and {_shown(expected.get(name))} in the plan" for name in wrong[:10]]
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CheckpointError(f"{source.uri} does not fit its plan.json: {'; '.join(told)}{more}")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not" if shape is None else f"{list(shape)} ({math.prod(shape):,} elements)"
