"""FSDP2 over a model of ours: each encoder block, the connector, each decoder block, and what is left at the root."""

import warnings
from dataclasses import dataclass

import torch
import torch._dynamo  # optimizers and sharded tensors load it at their first call; here it is read with all the rest, and sooner
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from stagecoach_workloads.models.multimodal import MultimodalModel


@dataclass(frozen=True, kw_only=True)
class Precision:
    """`state`: of parameters, gradients between steps and the optimizer; `compute`: of what is gathered and multiplied."""

    state: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: torch.device) -> "Precision":
        """bf16 compute where there is hardware for it; on CPU, where bf16 is slower, fp32: miniatures are exact there."""
        return cls(compute=torch.bfloat16 if device.type == "cuda" else torch.float32)


def blocks_of(model: MultimodalModel) -> list[nn.Module]:
    """The units of sharding, in the order in which a forward pass enters them."""
    return [*model.encoder.blocks, model.connector, *model.decoder.blocks]


def shard_model(model: MultimodalModel, mesh: DeviceMesh, precision: Precision) -> None:
    """Shards in place; a two-axis mesh replicates over its first axis. Gradients are summed in the state's type, never averaged: the loss
    was divided by the global number of targets already.

    One rank alone has nothing to gather: unless weights are cast on the way, it is left whole, and four copies of all of it a step saved.
    """
    mixed = precision.compute != precision.state
    if mesh.size() == 1 and not mixed:
        return
    policy = MixedPrecisionPolicy(
        param_dtype=precision.compute if mixed else None,
        reduce_dtype=precision.state if mixed else None,
        cast_forward_inputs=False,  # angles stay fp32; everything else follows the weights it meets
    )
    # A connector's output is a view; nothing of ours writes into it, which is what torch warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # its head is needed again at once
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # pre-multiplied averages would need NCCL and cost the last bits


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """All of a model's FSDP units."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def set_last_microbatch(model: nn.Module, *, is_last: bool) -> None:
    """Between microbatches gradients stay reduced within the shard group only; copies meet once a step."""
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(is_last)
        model.set_requires_all_reduce(is_last)
