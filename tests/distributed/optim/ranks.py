"""Run by the tests of this folder on each rank: a case's name, rank, world size, rendezvous file, a folder for what ranks write.

Whatever a case finds is printed by rank 0 as one line of JSON.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from stagecoach.contract.plan import Optimizer, StagePlan
from stagecoach.recipes import recipe_function
from stagecoach_workloads.parallel.clip import clip_grad_norm
from stagecoach_workloads.parallel.replicas import compare_replicas
from stagecoach_workloads.train.optimizers import Optimizer as Stepper
from stagecoach_workloads.train.optimizers import build_optimizer

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own
torch.set_num_threads(1)


class Toy(nn.Module):
    """First dims of 7, 5, 3, 2 and 1: shards are uneven and, with four ranks, empty. `tail` is replicated, not sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(9, 5)  # cut along the smaller factored dim
        self.tall = nn.Linear(4, 7, bias=False)  # cut along the larger one
        self.experts = nn.Parameter(torch.empty(3, 6, 4))  # cut along neither
        self.few = nn.Parameter(torch.empty(2, 8, 3))
        self.position = nn.Parameter(torch.empty(1, 4, 6))
        self.norm = nn.RMSNorm(7)
        self.tail = nn.Linear(3, 4)


def build(mesh: DeviceMesh | None, seed: int = 0) -> Toy:
    model = Toy()
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(seed * 100 + number)
        parameter.data = torch.randn(parameter.shape, generator=generator)
    if mesh is not None:
        fully_shard(model, mesh=mesh, ignored_params=set(model.tail.parameters()))
    return model


def give_gradients(model: nn.Module, step: int, value: float | None = None) -> None:
    """The same whole gradient for a parameter and step on any number of ranks, of sizes from 0.01 to 1."""
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(step * 1000 + number)
        whole = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 2)
        if value is not None and number == 0:
            whole.view(-1)[-1] = value
        shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else whole
        parameter.grad = shard


def stage(kind: Any) -> StagePlan:
    plan: StagePlan = recipe_function("mm1_tiny")().stages[0]
    return replace(plan, optimizer=Optimizer(kind=kind, peak_lr=3e-2, weight_decay=0.1, eps=1e-30 if kind == "adafactor" else 1e-8))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def worst(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, relative where values are large."""
    assert mine.keys() == theirs.keys()
    return max(float(((whole(mine[n]) - theirs[n]).abs() / theirs[n].abs().clamp(min=1)).max()) for n in theirs)


def train(model: nn.Module, optimizer: Stepper, steps: range) -> list[float]:
    norms = []
    for step in steps:
        give_gradients(model, step)
        norms.append(float(clip_grad_norm(model.parameters(), 0.5)))
        optimizer.step(1 / (1 + step))
        optimizer.zero_grad()
    return norms


def mesh_of(world: int, replicate: int = 1) -> DeviceMesh:
    if replicate == 1:
        return init_device_mesh("cpu", (world,), mesh_dim_names=("dp_shard",))
    return init_device_mesh("cpu", (replicate, world // replicate), mesh_dim_names=("dp_replicate", "dp_shard"))


# --- cases -----------------------------------------------------------------------------------------------------------------------


def equals_whole(kind: str, replicate: int, world: int) -> dict[str, Any]:
    """Six clipped steps sharded against six whole ones."""
    sharded, alone = build(mesh_of(world, replicate)), build(None)
    mine, theirs = build_optimizer(sharded, stage(kind)), build_optimizer(alone, stage(kind))
    norms, wanted = train(sharded, mine, range(6)), train(alone, theirs, range(6))
    torch_norm = float(torch.nn.utils.get_total_norm([p.grad for p in _with_gradients(build(None), 5) if p.grad is not None]))
    return {
        "weights": worst(dict(sharded.named_parameters()), dict(alone.named_parameters())),
        "state": worst(mine.state_tensors(), theirs.state_tensors()),
        "norms": max(abs(a - b) / b for a, b in zip(norms, wanted, strict=True)),
        "torch_norm": abs(wanted[5] - torch_norm) / torch_norm,
    }


def _with_gradients(model: nn.Module, step: int) -> list[nn.Parameter]:
    give_gradients(model, step)
    return list(model.parameters())


def passes_on(value: str, replicate: int, world: int) -> dict[str, Any]:
    """A value in the last shard of one parameter reaches every rank's norm."""
    model = build(mesh_of(world, replicate))
    give_gradients(model, 0, float(value))
    norm = clip_grad_norm(model.parameters(), 1.0)
    found: list[Any] = [None] * world
    dist.all_gather_object(found, float(norm))
    return {"norms": [str(norm) for norm in found]}


def part_one(kind: str, folder: Path, world: int) -> dict[str, Any]:
    """Three steps, then everything whole to a file."""
    model = build(mesh_of(world))
    optimizer = build_optimizer(model, stage(kind))
    train(model, optimizer, range(3))
    state = {name: whole(tensor).clone() for name, tensor in [*model.named_parameters(), *optimizer.state_tensors().items()]}
    if dist.get_rank() == 0:
        torch.save(state, folder / f"{kind}.pt")
    return {}


def part_two(kind: str, folder: Path, world: int) -> dict[str, Any]:
    """Loads that on another number of ranks before any step, takes three more, against six steps of one rank."""
    model = build(mesh_of(world), seed=1)
    optimizer = build_optimizer(model, stage(kind))
    saved = torch.load(folder / f"{kind}.pt")
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *optimizer.state_tensors().items()]:
            value = saved[name]
            tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else value)
    train(model, optimizer, range(3, 6))
    alone = build(None)
    reference = build_optimizer(alone, stage(kind))
    train(alone, reference, range(6))
    return {
        "weights": worst(dict(model.named_parameters()), dict(alone.named_parameters())),
        "state": worst(optimizer.state_tensors(), reference.state_tensors()),
        "steps_taken": optimizer.steps_taken,
    }


def flips(kind: str, replicate: int, steps: int, world: int) -> dict[str, Any]:
    """So many steps without an alarm; then one bit of one rank's memory at a time, each put back."""
    model = build(mesh_of(world, replicate))
    optimizer = build_optimizer(model, stage(kind))
    alarms = []
    for step in range(steps):
        train(model, optimizer, range(step, step + 1))
        alarms += compare_replicas(model, optimizer, also={"step": step})
    parameters, state = dict(model.named_parameters()), optimizer.state_tensors()
    statistic = "tall.weight:column" if kind == "adafactor" else "tall.weight:exp_avg"
    found = {}
    for name, tensor in {"tail.weight": parameters["tail.weight"], "wide.weight": parameters["wide.weight"], statistic: state[statistic],
                         "optimizer:step": state["optimizer:step"]}.items():  # fmt: skip
        for rank in (1, 2):
            before = flip(tensor) if dist.get_rank() == rank else None
            found[f"{name}@{rank}"] = compare_replicas(model, optimizer)
            if before is not None:
                _local(tensor).copy_(before)
    also = compare_replicas(model, optimizer, also={"seed": 7 if dist.get_rank() == 2 else 3})
    return {"alarms": alarms, "flips": found, "also": also, "after": compare_replicas(model, optimizer)}


@torch.no_grad()
def flip(tensor: Tensor) -> Tensor:
    """Turns the lowest bit of the last value; returns what was there."""
    local = _local(tensor)
    before = local.clone()
    if local.numel():
        local.view(-1).view(torch.uint8)[-local.element_size()] ^= 1
    return before


def _local(tensor: Tensor) -> Tensor:
    return (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).detach()


def main() -> None:
    case, rank, world, store, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for line in case.split():
        name, *values = line.split(",")
        found[line] = CASES[name](*values, folder, world)
    if rank == 0:
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "equals_whole": lambda kind, replicate, _folder, world: equals_whole(kind, int(replicate), world),
    "passes_on": lambda value, replicate, _folder, world: passes_on(value, int(replicate), world),
    "part_one": part_one,
    "part_two": part_two,
    "flips": lambda kind, replicate, steps, _folder, world: flips(kind, int(replicate), int(steps), world),
}

if __name__ == "__main__":
    main()
