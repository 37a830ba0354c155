"""Which parameters are trained, at which peak rate, and which of them decay."""

from dataclasses import dataclass

import torch
from torch import nn

from stagecoach.contract.plan import Optimizer as OptimizerPlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.build import part_of

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")  # what wrapping adds to a parameter's name


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a peak rate and a decay. `weight_decay` is PyTorch's: per step the weights lose rate x weight_decay."""

    name: str  # "model" or "connector": what logs call the rate
    peak_lr: float
    weight_decay: float
    parameters: dict[str, nn.Parameter]


def group_parameters(model: nn.Module, plan: OptimizerPlan) -> list[ParameterGroup]:
    """Trainable parameters by rate and decay; frozen ones are in no group. Raises ConfigError when nothing is trained.

    Norms, biases and everything else of one dimension do not decay. The decay of all others is weight_decay x peak_lr x schedule also
    where the connector learns at a rate of its own: MM1's lambda is one number beside the rates, not a factor of each (recipes.md 1.5).
    """
    rates = {"model": plan.peak_lr, "connector": plan.connector_peak_lr or plan.peak_lr}
    found: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        own_rate = plan.connector_peak_lr is not None and part_of(name) == "connector"
        found.setdefault(("connector" if own_rate else "model", decays(name, parameter)), {})[name] = parameter
    if not found:
        raise ConfigError(
            "model.trainable leaves nothing to train: no parameter takes a gradient; name at least one of encoder, connector, decoder, "
            "embeddings"
        )
    return [
        ParameterGroup(
            name=group,
            peak_lr=rates[group],
            weight_decay=plan.weight_decay * plan.peak_lr / rates[group] if decay else 0.0,
            parameters=parameters,
        )
        for (group, decay), parameters in found.items()
    ]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take gradients, by the model's own names whatever it was wrapped in. Raises TypeError for half precision.

    Trained weights are fp32 (or fp64): in bf16 a rate of 1e-5 rounds away. Compute in bf16 is FSDP's or autocast's business.
    """
    found = {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} is trained and is {parameter.dtype}; trained weights are kept in float32 and cast for compute")
    return found


def plain_name(name: str) -> str:
    """The name without what torch.compile and activation checkpointing put in."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def decays(name: str, parameter: nn.Parameter) -> bool:
    """True for matrices and beyond: norms, biases and vectors do not decay."""
    return parameter.ndim >= 2 and not name.endswith("bias")
