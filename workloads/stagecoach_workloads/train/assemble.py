"""From a plan to what the loop runs on. Each step of assembly has a name; nothing here trains."""

import hashlib
import os
import shutil
from dataclasses import dataclass, replace

import torch
from torch.distributed.device_mesh import DeviceMesh

from stagecoach.contract.identity import model_fingerprint
from stagecoach.contract.plan import DatasetRef, StagePlan
from stagecoach.costs.load import stage_steps
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import Store
from stagecoach_workloads.data.plan.open import OpenData, open_data
from stagecoach_workloads.data.work.fetch import FetchSettings
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.models.build import build_model as build_whole_model
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.parallel.checkpointing import apply_activation_checkpointing
from stagecoach_workloads.parallel.compile import compile_blocks
from stagecoach_workloads.parallel.fsdp import Precision, blocks_of, shard_model
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.train.feed import DataWatch, Feed
from stagecoach_workloads.train.guard import Guard
from stagecoach_workloads.train.optimizers.build import build_optimizer
from stagecoach_workloads.train.state import TrainState

CACHE_SHARE = 0.25  # of the free part of a node's disk, for blocks of data


@dataclass(frozen=True)
class World:
    """Who takes part and how."""

    rank: int
    world_size: int
    device: torch.device
    axes: dict[str, int]
    mesh: DeviceMesh


def read_plan(context: RankContext) -> StagePlan:
    """plan.json, which is all that configures a stage. Raises ConfigError when it is missing or asks for what is not built."""
    plan = context.job.plan()
    if plan is None:
        raise ConfigError(f"{context.job.uri}/plan.json is missing; a stage is started by `stagecoach run-stage` or `stagecoach run`")
    if plan.loss.kind != "cross_entropy":
        raise ConfigError(f"loss.kind={plan.loss.kind} is not built yet; use cross_entropy")
    return plan


def make_deterministic(plan: StagePlan, device: torch.device) -> None:
    """The same seed and world size give the same bits: one kernel for each operation, and as many threads on every machine."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling what was not written costs a pass over all memory, and nothing of ours reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    else:
        torch.set_num_threads(max(1, int(plan.resources.cpus_per_rank)))  # sums are split by threads


def build_model(plan: StagePlan, mesh: DeviceMesh, device: torch.device, precision: Precision) -> MultimodalModel:
    """The sharded model, on its device, its weights not yet filled: `starts.begin` or a checkpoint does that."""
    model = build_whole_model(plan.model, device="meta").to(precision.state)
    blocks = blocks_of(model)
    apply_activation_checkpointing(blocks, plan.layout.activation_checkpointing)
    if plan.layout.compile:
        compile_blocks(blocks)
    shard_model(model, mesh, precision)
    model.to_empty(device=device)
    model.z_loss = plan.loss.z_loss
    return model.train()


def build_state(plan: StagePlan, mesh: DeviceMesh, device: torch.device, precision: Precision | None = None) -> TrainState:
    """Model, optimizer and guard at step 0, memory allocated and nothing in it."""
    model = build_model(plan, mesh, device, precision or Precision.of(device))
    return TrainState(model=model, optimizer=build_optimizer(model, plan), guard=Guard(max_grad_norm=plan.optimizer.max_grad_norm))


def open_stage_data(plan: StagePlan, model: MultimodalModel, states: Store | None = None) -> OpenData:
    """The datasets that plan.json pins; `states` is the job's store, which may know where steps begin. The model learns which token
    stands for an image."""
    data = open_data(plan, states=states)
    model.image_token = data.tokenizer.image_id
    return data


def build_feed(context: RankContext, data: OpenData, state: TrainState, *, steps: int) -> Feed:
    """The rank's steps from where `state` is."""
    loader = StepLoader(
        data,
        rank=context.rank,
        world_size=context.world_size,
        start=state.data_step,
        state=state.data,
        settings=work_settings(context, data.stage),
    )
    last_step = steps - 1 + state.guard.batches_skipped
    return Feed(loader, DataWatch(loader, context.job.store, last_step=last_step) if context.rank == 0 else None)


def work_settings(context: RankContext, plan: StagePlan) -> WorkSettings:
    """Decoding by threads, or by processes where the plan asks for them, which take seconds to come up."""
    processes = plan.layout.loader_processes
    usual = WorkSettings(workers=processes, threads=1) if processes else WorkSettings()
    return replace(usual, fetch=fetch_settings(context))


def fetch_settings(context: RankContext) -> FetchSettings:
    """Blocks of an object store are kept on the node's disk for its other ranks, in a part of what is free there."""
    usual = FetchSettings()
    room = int(shutil.disk_usage(context.local_dir).free * CACHE_SHARE)
    return replace(usual, cache_folder=str(context.local_dir / "blocks"), cache_bytes=min(usual.cache_bytes, room))


def sources_of(plan: StagePlan, data: OpenData) -> list[DatasetRef]:
    """The data plan's sources, in its order, as the plan describes them."""
    by_name = {dataset.name: dataset for dataset in plan.data.datasets}
    return [by_name[source.name] for source in data.plan.sources]


def resolve_steps(plan: StagePlan, data: OpenData) -> int:
    """Optimizer steps of the stage. Raises DataError when a step needs more samples than there are (B25)."""
    samples = sum(source.num_samples for source in data.plan.sources)
    if plan.batch.unit == "samples" and plan.batch.size > samples:
        raise DataError(
            f"batch.size={plan.batch.size} samples a step, and the datasets have {samples} in all; use a smaller batch or more data"
        )
    return stage_steps(plan)


def fingerprints_of(plan: StagePlan, data: OpenData) -> dict[str, str]:
    """What a checkpoint says it was made from: tokenizer, model, data; as `stage.json` tells them."""
    pinned = sorted(f"{dataset.name} {dataset.fingerprint}" for dataset in plan.data.datasets if dataset.fingerprint is not None)
    return {
        "tokenizer": data.tokenizer.fingerprint,
        "model": model_fingerprint(plan.model),
        "data": hashlib.sha256("\n".join(pinned).encode()).hexdigest(),
    }
