"""Clipping and digests on one process; tests/distributed/optim has them on many."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stagecoach_workloads.parallel.clip import clip_grad_norm, global_norm
from stagecoach_workloads.parallel.replicas import device_digest, disagreeing, state_digest


@pytest.mark.parametrize("max_norm", [0.1, 1e4])
def test_clipping_equals_torchs(parts: nn.Module, give_gradients: Any, max_norm: float) -> None:
    give_gradients(parts, 2)
    wanted = {name: parameter.grad.clone() for name, parameter in parts.named_parameters() if parameter.grad is not None}
    total = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in wanted.values()))
    norm = clip_grad_norm(parts.parameters(), max_norm)
    assert float(norm) == pytest.approx(total, rel=1e-6)
    for name, parameter in parts.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name] * min(1.0, max_norm / (total + 1e-6)))


def test_parameters_without_gradients_are_left_out(parts: nn.Module) -> None:
    assert float(clip_grad_norm(parts.parameters(), 1.0)) == 0.0
    assert float(global_norm([])) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_in_the_norm(parts: nn.Module, give_gradients: Any, value: float) -> None:
    give_gradients(parts, 0)
    gradient = parts.get_parameter("experts").grad
    assert gradient is not None
    gradient.view(-1)[5] = value
    assert not math.isfinite(float(clip_grad_norm(parts.parameters(), 1.0)))


@given(place=st.integers(0, 999), bit=st.integers(0, 31), kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]))
def test_any_flipped_bit_changes_both_digests(place: int, bit: int, kind: torch.dtype) -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(100).to(kind)
    before = state_digest({"a": tensor}), int(device_digest(tensor))
    words = tensor.view(torch.uint8)
    words[place * tensor.element_size() + bit // 8 % tensor.element_size()] ^= 1 << bit % 8
    assert state_digest({"a": tensor}) != before[0]
    assert int(device_digest(tensor)) != before[1]


def test_digests_know_names_and_places() -> None:
    one, two = torch.arange(4.0), torch.arange(4.0).flip(0)
    assert state_digest({"a": one, "b": two}) != state_digest({"a": two, "b": one})
    assert int(device_digest(one)) != int(device_digest(two))
    assert state_digest({"a": torch.empty(0)}) == state_digest({"a": torch.empty(0)})


@pytest.mark.parametrize(
    ("copies", "wrong"),
    [
        ({0: (1, 5), 1: (1, 5), 2: (1, 6)}, {2}),
        ({0: (1, 5), 1: (1, 6)}, {0, 1}),  # two copies: nobody knows which one is right
        ({0: (1, 5), 1: (2, 6), 2: (1, 5), 3: (2, 6)}, set()),  # copies of two different shards
        ({0: (1, 5), 1: (2, 6), 2: (1, 5), 3: (2, 7), 4: (1, 5), 5: (2, 7)}, {1}),
        ({0: (1, 5)}, set()),
    ],
)
def test_the_minority_is_named(copies: dict[int, tuple[int, int]], wrong: set[int]) -> None:
    assert disagreeing(copies) == wrong
