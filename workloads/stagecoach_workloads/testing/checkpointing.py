"""A small state in which every element says where it belongs, and a rank to save it: for tests of checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecoach.contract.job import AttemptStart
from stagecoach.contract.ledger import JobFolder
from stagecoach_workloads.checkpoints import Checkpoints, CheckpointSettings, CheckpointState
from stagecoach_workloads.rank import RankContext

Place = Callable[[Tensor], Tensor]

# Rows that no world size here divides, rows fewer than ranks, a matrix, a cube, a vector; all types that training uses.
MODEL_SHAPES: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
    "embed.weight": ((37, 8), torch.float32),
    "block.0.weight": ((16, 12), torch.bfloat16),
    "block.0.bias": ((3,), torch.float32),
    "conv.weight": ((5, 3, 2), torch.float16),
    "norm.weight": ((64,), torch.float64),
    "empty": ((0, 4), torch.float32),
}


def whole_state(step: int) -> CheckpointState:
    """The state as of `step`, unsharded. No two elements of a tensor, and no two steps, are equal."""
    model = {name: _filled(shape, dtype, step) for name, (shape, dtype) in MODEL_SHAPES.items()}
    optimizer: dict[str, Tensor] = {f"{name}:exp_avg": _filled(shape, torch.float32, step + 1) for name, (shape, _) in MODEL_SHAPES.items()}
    optimizer |= {f"{name}:step": torch.tensor(float(step)) for name in MODEL_SHAPES}
    optimizer["counts"] = torch.arange(step, step + 5)
    optimizer["flags"] = torch.tensor([True, False, step % 2 == 0])
    return CheckpointState(model=model, optimizer=optimizer, shared={"step": step, "note": "ä"}, own={"random": f"of step {step}"})


def place_state(state: CheckpointState, place: Place) -> CheckpointState:
    """The same with every tensor of one dimension or more placed, like by distribute_tensor."""
    model = {name: place(tensor) for name, tensor in state.model.items()}
    optimizer = {name: place(tensor) if name.endswith(":exp_avg") else tensor for name, tensor in state.optimizer.items()}
    return CheckpointState(model=model, optimizer=optimizer, shared=state.shared, own=state.own)


def blank(state: CheckpointState) -> CheckpointState:
    """The same tensors with nothing in them."""
    return CheckpointState(
        model={name: torch.zeros_like(tensor) for name, tensor in state.model.items()},
        optimizer={name: torch.zeros_like(tensor) for name, tensor in state.optimizer.items()},
    )


def assert_equal(found: CheckpointState, expected: CheckpointState) -> None:
    """Bit for bit, on this rank's part."""
    for part in ("model", "optimizer"):
        here, there = getattr(found, part), getattr(expected, part)
        assert here.keys() == there.keys()
        for name in here:
            mine, theirs = local(here[name]), local(there[name])
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
            assert torch.equal(mine, theirs), name


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def rank_context(uri: str, folder: Path, *, rank: int = 0, world_size: int = 1, attempt: int = 1) -> RankContext:
    """A rank without a supervisor."""
    folder.mkdir(parents=True, exist_ok=True)
    return RankContext(
        job=JobFolder.open(uri), attempt=attempt, submission=1, rank=rank, local_rank=rank, world_size=world_size, node=0, nodes=1,
        ranks_per_node=world_size, local_dir=folder, grace_s=30,
    )  # fmt: skip


def build_checkpoints(context: RankContext, *, mesh: Mapping[str, int] | None = None, **changes: Any) -> Checkpoints:
    """With a plan, data and retention of a test. `changes`: identity, fingerprints, keep, and fields of CheckpointSettings."""
    asked: dict[str, Any] = {"identity": "a" * 64, "fingerprints": {"data": "d" * 64}, "keep": 3}
    asked |= {name: changes.pop(name) for name in asked if name in changes}
    return Checkpoints(
        context, mesh=mesh or {"dp_shard": context.world_size}, keep_every_steps=None, settings=CheckpointSettings(**changes), **asked
    )


def start_attempt(job: JobFolder, attempt: int, resumed_from_step: int) -> None:
    """Claims an attempt, as node 0's supervisor does."""
    start = AttemptStart(
        attempt=attempt, submission=1, leader_host="localhost", leader_port=29500, nonce="n" * 32, nodes=1, ranks_per_node=1, world_size=1,
        layout="l" * 64, identity="a" * 64, why="first" if attempt == 1 else "retry", resumed_from_step=resumed_from_step,
        started_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    assert job.claim_attempt(start)


def _filled(shape: tuple[int, ...], dtype: torch.dtype, step: int) -> Tensor:
    """Distinct small integers, exact in every type."""
    count = 1
    for size in shape:
        count *= size
    return (
        (torch.arange(count) * 3 + step).remainder(509).view(shape).to(dtype) if dtype != torch.bfloat16 else _bits(count, step).view(shape)
    )


def _bits(count: int, step: int) -> Tensor:
    """bfloat16 holds few integers; these differ in their bits, and none is NaN."""
    return (torch.arange(count, dtype=torch.int16) * 7 + step).view(torch.bfloat16)
