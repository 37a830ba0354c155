"""From plan to model: built on any device (also `meta`), initialised from a seed that gives every world size the same weights."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stagecoach.contract.plan import Model as ModelPlan
from stagecoach_workloads.models.lora import add_lora
from stagecoach_workloads.models.moe import MoeFeedForward
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.weights.loading import assign


def build_model(plan: ModelPlan, *, device: torch.device | str = "cpu", seed: int | None = 0) -> MultimodalModel:
    """The model that `plan` describes, its frozen parts frozen. Raises ConfigError for shapes that cannot work.

    Weights are initialised from `seed`, except on the meta device or when `seed` is None (then they are whatever memory held:
    load or `init_weights` before use).
    """
    with torch.device(device):
        model = MultimodalModel(plan)
        if plan.lora is not None:
            add_lora(model.decoder, plan.lora)
    set_trainable(model, plan)
    if seed is not None and torch.device(device).type != "meta":
        init_weights(model, seed)
    return model


def set_trainable(model: MultimodalModel, plan: ModelPlan) -> None:
    """Leaves gradients on for the parts of `plan.trainable`, or for the adapters alone when there are any."""
    for name, parameter in model.named_parameters():
        if plan.lora is not None:
            parameter.requires_grad_(".lora_" in name)
        else:
            parameter.requires_grad_(part_of(name) in plan.trainable)


def part_of(name: str) -> str:
    """Which part of the plan (`encoder`, `connector`, `decoder`, `embeddings`) a parameter belongs to."""
    if name.startswith(("decoder.embed.", "decoder.head.")):
        return "embeddings"
    return name.split(".", 1)[0]


@torch.no_grad()
def init_weights(model: nn.Module, seed: int, beat: Callable[[], object] = lambda: None) -> None:
    """Fills every parameter; each from a generator of its own, seeded by (seed, name), so neither order nor sharding matters. `beat` is
    called for each of them: ten thousand million numbers take minutes.

    Normal with std 1 / sqrt(fan-in), as AXLearn does, in which MM1 was trained (ours: the papers state none), so that a signal keeps its
    size at any width; at 3072 that is 0.018, where GPT-2's constant is 0.02. Embeddings, positions and queries: 1 / sqrt(width). What
    ends a residual branch of the decoder is divided by sqrt(2 x layers) (GPT-2); norms 1, biases 0; low-rank `b` 0, so that an adapter
    starts as nothing.
    """
    layers = sum(1 for name, _ in model.named_modules() if name.startswith("decoder.blocks.") and name.count(".") == 2)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        beat()
        owner, _, leaf = name.rpartition(".")
        assign(parameter, initial_value(name, leaf, modules[owner], tuple(parameter.shape), layers, seed))


def initial_value(name: str, leaf: str, owner: nn.Module, shape: tuple[int, ...], layers: int, seed: int) -> Tensor:
    """One parameter's full first value, fp32 on the CPU."""
    if leaf == "bias" or leaf == "lora_b":
        return torch.zeros(shape)
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        return torch.ones(shape)
    std = 1 / math.sqrt(fan_in(owner, shape))
    if name.startswith("decoder.blocks.") and _ends_residual(name, leaf, owner):
        std /= math.sqrt(2 * layers)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator) * std


def fan_in(owner: nn.Module, shape: tuple[int, ...]) -> int:
    """How many values each output is summed from; of what is looked up or added, its width."""
    if isinstance(owner, nn.Conv2d):
        return math.prod(shape[1:])
    return shape[-2] if isinstance(owner, MoeFeedForward) else shape[-1]


def _ends_residual(name: str, leaf: str, owner: nn.Module) -> bool:
    return name.endswith(("attention.o.weight", "ffn.down.weight")) or (leaf == "down" and isinstance(owner, MoeFeedForward))
