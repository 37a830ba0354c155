"""bf16 compute over fp32 state, as on a GPU, on the CPU: what is multiplied, what is kept, and what a checkpoint would hold."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from stagecoach.contract.plan import Layout
from stagecoach.recipes import recipe_function
from stagecoach_workloads.models.build import init_weights
from stagecoach_workloads.parallel.clip import local_part
from stagecoach_workloads.parallel.fsdp import Precision, blocks_of
from stagecoach_workloads.parallel.mesh import build_mesh, mesh_axes
from stagecoach_workloads.train.assemble import build_state
from stagecoach_workloads.train.optimizers.build import STEPS_TAKEN
from stagecoach_workloads.train.state import TrainState

PLAN = recipe_function("mm1_tiny")().stages[0]
CPU = torch.device("cpu")
MIXED = Precision(compute=torch.bfloat16)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainState]:
    """The miniature, sharded over the one rank that there is."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a mesh on the CPU
        made = build_state(PLAN, build_mesh(mesh_axes(Layout(), 1), CPU), CPU, MIXED)
        init_weights(made.model, 1)
        yield made
    dist.destroy_process_group()


def loss_of(state: TrainState) -> torch.Tensor:
    tokens_BT = torch.arange(24).reshape(1, 24) % 100
    loss = state.model(tokens_BT, labels_BT=tokens_BT).loss_sum
    assert loss is not None
    return loss


def test_blocks_compute_in_bf16_and_weights_gradients_and_moments_stay_in_fp32(state: TrainState) -> None:
    seen: set[torch.dtype] = set()

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        outputs = [output] if isinstance(output, torch.Tensor) else output
        seen.update(value.dtype for value in outputs if value is not None)

    for block in blocks_of(state.model):
        block.register_forward_hook(look)
    before = {name: local_part(value).clone() for name, value in state.model.named_parameters()}
    loss_of(state).backward()
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in state.model.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in state.model.parameters() if value.grad is not None} == {torch.float32}
    state.optimizer.step(1e-3)
    assert {value.dtype for name, value in state.optimizer.state_tensors().items() if name != STEPS_TAKEN} == {torch.float32}
    moved = [name for name, value in state.model.named_parameters() if not torch.equal(local_part(value), before[name])]
    assert moved
    rounded = [name for name in moved if torch.equal(local_part(state.model.get_parameter(name)).bfloat16(), before[name].bfloat16())]
    assert rounded  # steps too small for bf16 are not lost: that is what the fp32 state is for


def test_bf16_is_for_devices_that_have_it() -> None:
    assert Precision.of(CPU) == Precision(state=torch.float32, compute=torch.float32)
    assert Precision.of(torch.device("cuda")) == MIXED
