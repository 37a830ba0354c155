"""Loss curves of so many ranks, and what they gather from a checkpoint: the trainer's own parts, without a job around them.

    python -m stagecoach_workloads.testing.curves RANK RANKS RENDEZVOUS_FILE ORDERS FOLDER

ORDERS is JSON, by name: {"plan", "steps", "fp64"} trains that many steps; {"plan", "job": URI} loads the newest checkpoint there. Rank 0
leaves NAME.json in FOLDER, and of training NAME.gradients (the first step's, whole). What is compiled is compiled by aot_eager: inductor
takes half a minute for a toy.
"""

import hashlib
import json
import os
import sys
import warnings
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from stagecoach.checkpoints import latest
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import validate
from stagecoach_workloads.checkpoints.loading import plan_load
from stagecoach_workloads.checkpoints.reading import CheckpointReader
from stagecoach_workloads.data.work.loader import StepLoader
from stagecoach_workloads.models.build import init_weights
from stagecoach_workloads.parallel.compile import compile_blocks
from stagecoach_workloads.parallel.fsdp import Precision
from stagecoach_workloads.parallel.mesh import build_mesh, mesh_axes
from stagecoach_workloads.train import assemble
from stagecoach_workloads.train.agreement import Totals, agree
from stagecoach_workloads.train.assemble import build_state, make_deterministic, open_stage_data, sources_of
from stagecoach_workloads.train.loop import totals_of
from stagecoach_workloads.train.schedule import rate_scale
from stagecoach_workloads.train.state import full_value, weights_digest
from stagecoach_workloads.train.step import compute_gradients

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own
CPU = torch.device("cpu")
assemble.compile_blocks = partial(compile_blocks, backend="aot_eager")  # type: ignore[attr-defined]


def main() -> None:
    rank, world, store, orders, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), sys.argv[5]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for name, order in orders.items():
        report, gradients = (gather(order, rank, world), None) if "job" in order else train(order, rank, world)
        if rank == 0:
            if gradients is not None:
                torch.save(gradients, f"{folder}/{name}.gradients")
            with open(f"{folder}/{name}.json", "w") as file:
                json.dump(report, file)
    dist.barrier()
    dist.destroy_process_group()


def gather(order: dict[str, Any], rank: int, world: int) -> dict[str, str]:
    """Digests of the whole of what these ranks load into their shards."""
    plan = validate(StagePlan, order["plan"], where="order")
    state = build_state(plan, build_mesh(mesh_axes(plan.layout, world), CPU), CPU)
    job = JobFolder.open(order["job"])
    ref = latest(job)
    assert ref is not None
    reader = CheckpointReader(job, ref, threads=2)
    load = plan_load(reader.manifest, state.tensors(), ("model", "optimizer"), rank)
    reader.read(load.reads)
    load.finish()
    optimizer = hashlib.sha256()
    for name, tensor in sorted(state.optimizer.state_tensors().items()):
        whole = full_value(tensor).contiguous()
        optimizer.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode() + whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"model": weights_digest(state.model, rank, world), "optimizer": optimizer.hexdigest()}


def train(order: dict[str, Any], rank: int, world: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(what it came to, the first step's gradients, whole)."""
    plan = validate(StagePlan, order["plan"], where="order")
    make_deterministic(plan, CPU)
    precision = Precision(state=torch.float64, compute=torch.float64) if order["fp64"] else Precision()
    state = build_state(plan, build_mesh(mesh_axes(plan.layout, world), CPU), CPU, precision)
    init_weights(state.model, plan.seed)
    data = open_stage_data(plan, state.model)
    losses, gradients = [], {}
    for loaded in StepLoader(data, rank=rank, world_size=world, stop=order["steps"]):
        totals = agree(totals_of(loaded.batches, 0, Totals()))
        found = compute_gradients(
            state, loaded.batches, num_targets=totals.targets, max_grad_norm=1e9, sources=sources_of(plan, data), device=CPU
        )
        losses.append(found.loss)
        if loaded.step == 0:
            gradients = {name: full_value(p.grad).double() for name, p in state.model.named_parameters() if p.grad is not None}
        state.optimizer.step(rate_scale(plan.schedule, loaded.step + 1, order["steps"]))
        state.optimizer.zero_grad()
    digest = weights_digest(state.model, rank, world)
    return {"losses": losses, "by_label": dict(found.losses), "grad_norm": found.grad_norm, "digest": digest}, gradients


if __name__ == "__main__":
    main()
