"""The trainer's optimizer: one or more engines over groups of parameters, a shared count of steps, state that exists from the start."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from stagecoach.contract.plan import StagePlan
from stagecoach_workloads.train.optimizers.adafactor import Adafactor
from stagecoach_workloads.train.optimizers.adamw import AdamW
from stagecoach_workloads.train.optimizers.groups import ParameterGroup, group_parameters
from stagecoach_workloads.train.optimizers.muon import Muon, split_groups

STEPS_TAKEN = "optimizer:step"  # 0-dim int64 on the CPU, equal on all ranks


class Engine(Protocol):
    """The arithmetic of one optimizer over its groups."""

    groups: Sequence[ParameterGroup]

    def update(self, steps_taken: int, lr_scale: float) -> None:
        """Moves the weights by their gradients; `steps_taken` updates came before."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """All state by `{parameter}:{key}`."""
        ...


class Optimizer:
    """What the loop calls. All ranks call it alike; with sharded weights some engines talk to each other inside `step`."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self._steps_taken = torch.zeros((), dtype=torch.int64)
        self._lr_scale = 0.0

    @torch.no_grad()
    def step(self, lr_scale: float) -> None:
        """One update at `lr_scale` times every peak rate. A parameter without a gradient stays as it is."""
        taken = int(self._steps_taken)  # on the CPU: waits for no device
        for engine in self.engines:
            engine.update(taken, lr_scale)
        self._steps_taken += 1
        self._lr_scale = lr_scale

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for group in self._groups():
            for parameter in group.parameters.values():
                parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """All state by `{parameter}:{key}`, the tensors themselves: a checkpoint is loaded into them in place, also before any step."""
        tensors = {STEPS_TAKEN: self._steps_taken}
        for engine in self.engines:
            tensors |= engine.state_tensors()
        return tensors

    def group_rates(self) -> dict[str, float]:
        """The rate of each group at the last step, for logs."""
        return {group.name: group.peak_lr * self._lr_scale for group in self._groups()}

    @property
    def steps_taken(self) -> int:
        """Updates made so far; skipped steps are none."""
        return int(self._steps_taken)

    def _groups(self) -> list[ParameterGroup]:
        return [group for engine in self.engines for group in engine.groups]


def build_optimizer(model: nn.Module, plan: StagePlan) -> Optimizer:
    """The optimizer of the plan over the model's trainable parameters, sharded or whole; its state is allocated here, as zeros.

    Call it once the weights are where they stay (after sharding and `to_empty`). Raises ConfigError when nothing is trained.
    """
    groups = group_parameters(model, plan.optimizer)
    match plan.optimizer.kind:
        case "adamw":
            return Optimizer([AdamW(groups, plan.optimizer)])
        case "adafactor":
            return Optimizer([Adafactor(groups, plan.optimizer)])
        case "muon":
            matrices, others = split_groups(groups)
            return Optimizer([Muon(matrices, plan.optimizer), AdamW(others, plan.optimizer)])
