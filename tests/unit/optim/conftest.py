"""Small stages and models with every shape of parameter that training meets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stagecoach.contract.plan import Optimizer, StagePlan
from stagecoach.recipes import recipe_function


class Parts(nn.Module):
    """Named as our models are: a connector, a decoder with a norm, stacked experts, embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.connector = nn.Linear(6, 10)
        self.decoder = nn.ModuleDict({"blocks": nn.Linear(10, 7), "norm": nn.RMSNorm(7)})
        self.experts = nn.Parameter(torch.randn(3, 7, 5))
        self.position = nn.Parameter(torch.randn(1, 4, 6))
        self.patch = nn.Conv2d(3, 8, 2, bias=False)


@pytest.fixture
def stage() -> Callable[..., StagePlan]:
    """stage(kind="adafactor", ...): a miniature whose optimizer has these values."""

    def make(**values: Any) -> StagePlan:
        plan: StagePlan = recipe_function("mm1_tiny")().stages[0]
        return replace(plan, optimizer=Optimizer(**{"kind": "adamw", "peak_lr": 1e-2, **values}))

    return make


@pytest.fixture
def parts() -> Parts:
    torch.manual_seed(0)
    return Parts()


@pytest.fixture
def give_gradients() -> Callable[[nn.Module, int], None]:
    """give_gradients(model, step): the same values for a name and step, whatever the model."""

    def give(model: nn.Module, step: int) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(step * 1000 + sum(map(ord, name)))
                size = 10.0 ** (step % 3 - 2)
                parameter.grad = (torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype)

    return give
