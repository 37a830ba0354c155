"""Optimizers against independent ones: torch's AdamW over the whole model, the definition of Adafactor in numpy."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stagecoach.contract.plan import StagePlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.train.optimizers import build_optimizer
from stagecoach_workloads.train.optimizers.adafactor import factored_dims
from stagecoach_workloads.train.optimizers.adamw import AdamW
from stagecoach_workloads.train.optimizers.build import STEPS_TAKEN, Optimizer
from stagecoach_workloads.train.optimizers.groups import group_parameters
from stagecoach_workloads.train.optimizers.muon import Muon, orthogonal, split_groups

Stage = Callable[..., StagePlan]
Give = Callable[[nn.Module, int], None]
KEYS = [
    ("adamw", {"exp_avg", "exp_avg_sq"}),
    ("adafactor", {"row", "column", "square"}),
    ("muon", {"momentum", "exp_avg", "exp_avg_sq"}),
]
SCALES = [0.25, 0.5, 1.0, 0.7, 0.1]


def run(model: nn.Module, plan: StagePlan, give: Give, scales: list[float] = SCALES) -> dict[str, torch.Tensor]:
    optimizer = build_optimizer(model, plan)
    for step, scale in enumerate(scales):
        give(model, step)
        optimizer.step(scale)
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# --- AdamW ---------------------------------------------------------------------------------------------------------------------


def test_adamw_equals_torchs_over_groups_of_rate_and_decay(parts: nn.Module, stage: Stage, give_gradients: Give) -> None:
    theirs = copy.deepcopy(parts)
    plan = stage(kind="adamw", connector_peak_lr=4e-2, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-6)
    mine = run(parts, plan, give_gradients)
    rates = {name: 4e-2 if name.startswith("connector") else 1e-2 for name, _ in theirs.named_parameters()}
    groups = [
        {"params": [p], "name": name, "weight_decay": 0.0 if p.ndim < 2 else 0.2 * 1e-2 / rates[name]}
        for name, p in theirs.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-6, foreach=False, fused=False)
    for step, scale in enumerate(SCALES):
        give_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = rates[group["name"]] * scale
        reference.step()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(mine[name], parameter.detach(), rtol=1e-6, atol=1e-7)


def test_without_gradients_to_speak_of_weights_decay_as_the_paper_says_and_norms_do_not(parts: nn.Module, stage: Stage) -> None:
    """MM1: the weights lose lambda = 0.1 eta times the schedule per step, at the connector's own rate too."""
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}

    def nothing(model: nn.Module, step: int) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    after = run(parts, stage(kind="adamw", peak_lr=6e-2, connector_peak_lr=8e-2, weight_decay=0.1), nothing, [0.5])
    for name, value in before.items():
        kept = 1 - 0.1 * 6e-2 * 0.5 if value.ndim >= 2 else 1.0
        torch.testing.assert_close(after[name], value * kept, rtol=1e-6, atol=0)


def test_fused_adamw_gives_the_same_bits_however_the_weights_are_cut_and_however_many_threads(stage: Stage) -> None:
    """A rank's shard ends anywhere, and a machine has any number of cores; neither may show."""
    generator = torch.Generator().manual_seed(0)
    weights, gradients = torch.randn(70_001, generator=generator), torch.randn(70_001, generator=generator)
    threads = torch.get_num_threads()

    def stepped(first: int, last: int, count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        parameter = nn.Parameter(weights[first:last].clone())
        optimizer = build_optimizer(nn.ParameterList([parameter]), stage(kind="adamw"))
        for _ in range(3):
            parameter.grad = gradients[first:last].clone()
            optimizer.step(1.0)
        return parameter.detach()

    try:
        whole = stepped(0, 70_001, 1)
        for count in (1, 2, 3):
            assert torch.equal(torch.cat([stepped(0, 777, count), stepped(777, 50_001, count), stepped(50_001, 70_001, count)]), whole)
    finally:
        torch.set_num_threads(threads)


# --- Adafactor -----------------------------------------------------------------------------------------------------------------


def numpy_adafactor(
    weights: np.ndarray, gradients: list[np.ndarray], rates: list[float], *, eps: float, threshold: float, decay: float
) -> np.ndarray:
    """The definition, in float64, for one parameter."""
    row = column = square = np.zeros(1)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        beta, v = 1 - t**-0.8, g * g + eps
        if g.ndim >= 2:
            small, large = np.argsort(g.shape, kind="stable")[-2:]
            row = beta * row + (1 - beta) * v.mean(axis=large, keepdims=True)
            column = beta * column + (1 - beta) * v.mean(axis=small, keepdims=True)
            u = g / np.sqrt(row * column / row.mean(axis=small, keepdims=True))
        else:
            square = beta * square + (1 - beta) * v
            u = g / np.sqrt(square)
        u = u / max(1.0, float(np.sqrt((u * u).mean())) / threshold)
        weights = weights * (1 - lr * decay) - lr * u
    return weights


@pytest.mark.parametrize("values", [{"eps": 1e-30, "weight_decay": 0.0}, {"eps": 1e-8, "weight_decay": 0.3, "clipping_threshold": 0.4}])
def test_adafactor_equals_the_definition_in_numpy(parts: nn.Module, stage: Stage, give_gradients: Give, values: dict[str, Any]) -> None:
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in before}

    def give(model: nn.Module, step: int) -> None:
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.double().numpy().copy())

    plan = stage(kind="adafactor", **values)
    after = run(parts, plan, give)
    for name, weights in before.items():
        decay = values["weight_decay"] if weights.ndim >= 2 else 0.0
        threshold = values.get("clipping_threshold", 1.0)
        wanted = numpy_adafactor(
            weights.double().numpy(), gradients[name], [1e-2 * s for s in SCALES], eps=values["eps"], threshold=threshold, decay=decay
        )
        np.testing.assert_allclose(after[name].numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_adafactors_clipping_bites(parts: nn.Module, stage: Stage, give_gradients: Give) -> None:
    """Or the test above would not see it: after two quiet steps the third is a hundred times larger."""
    loose = run(copy.deepcopy(parts), stage(kind="adafactor", clipping_threshold=100.0), give_gradients, [1.0] * 3)
    tight = run(parts, stage(kind="adafactor", clipping_threshold=1.0), give_gradients, [1.0] * 3)
    assert any(not torch.allclose(loose[name], tight[name], atol=1e-4) for name in tight)


def test_a_parameter_that_never_got_a_gradient_value_stays_finite(stage: Stage) -> None:
    """Rows of an embedding that no text used, experts that no token reached: g = 0 for long, then not."""
    model = nn.Linear(4, 6, bias=False)
    optimizer = build_optimizer(model, stage(kind="adafactor", eps=1e-30))
    for step in range(5):
        model.weight.grad = torch.zeros(6, 4)
        if step == 4:
            model.weight.grad[2] = 1e-3
        optimizer.step(1.0)
    assert bool(model.weight.isfinite().all())


@pytest.mark.parametrize(("shape", "dims"), [((3, 7, 5), (2, 1)), ((8, 3, 2, 2), (1, 0)), ((4, 4), (0, 1)), ((1, 5, 6), (1, 2))])
def test_the_two_largest_dims_are_factored(shape: tuple[int, ...], dims: tuple[int, int]) -> None:
    assert factored_dims(shape) == dims


# --- Muon ----------------------------------------------------------------------------------------------------------------------


def test_muon_equals_torchs_on_matrices_and_experts_and_is_adamw_on_the_rest(parts: nn.Module, stage: Stage, give_gradients: Give) -> None:
    theirs = copy.deepcopy(parts)
    plan = stage(kind="muon", connector_peak_lr=4e-2, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-6)
    matrices, others = split_groups(group_parameters(parts, plan.optimizer))
    mine = Optimizer([Muon(matrices, plan.optimizer, compute=torch.bfloat16), AdamW(others, plan.optimizer)])
    assert {name for group in matrices for name in group.parameters} == {"connector.weight", "decoder.blocks.weight", "experts"}
    experts = [nn.Parameter(expert.clone()) for expert in theirs.get_parameter("experts").detach()]
    muon = {"momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}
    usual, own = [theirs.get_parameter("decoder.blocks.weight"), *experts], theirs.get_parameter("connector.weight")
    references = [
        (torch.optim.Muon(usual, lr=1e-2, weight_decay=0.2, **muon), 1e-2),
        (torch.optim.Muon([own], lr=4e-2, weight_decay=0.05, **muon), 4e-2),
    ]
    for step, scale in enumerate(SCALES):
        give_gradients(parts, step)
        give_gradients(theirs, step)
        for number, expert in enumerate(experts):
            expert.grad = theirs.get_parameter("experts").grad[number]
        mine.step(scale)
        for reference, rate in references:
            reference.param_groups[0]["lr"] = rate * scale
            reference.step()
    torch.testing.assert_close(parts.get_parameter("experts").detach(), torch.stack([expert.detach() for expert in experts]))
    for name in ("decoder.blocks.weight", "connector.weight"):
        torch.testing.assert_close(parts.get_parameter(name).detach(), theirs.get_parameter(name).detach())
    plain = copy.deepcopy(theirs)  # its other parameters have not moved
    alone = run(plain, replace(plan, optimizer=replace(plan.optimizer, kind="adamw")), give_gradients)
    for name in ("connector.bias", "decoder.norm.weight", "position", "patch.weight"):
        torch.testing.assert_close(parts.get_parameter(name).detach(), alone[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_an_update_of_muon_is_nearly_orthogonal_and_points_as_the_gradient_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, sizes, right = torch.linalg.svd(orthogonal(matrix), full_matrices=False)
    assert 0.6 < float(sizes.min()) <= float(sizes.max()) < 1.3
    exact_left, _, exact_right = torch.linalg.svd(matrix, full_matrices=False)
    exact = exact_left @ exact_right
    assert float((orthogonal(matrix) * exact).sum() / exact.norm() / sizes.norm()) > 0.97
    assert left.shape[1] == right.shape[0] == min(shape)


# --- what every kind promises ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_state_is_there_before_the_first_step_and_a_copy_of_it_goes_on_to_the_bit(
    kind: str, parts: nn.Module, stage: Stage, give_gradients: Give
) -> None:
    plan = stage(kind=kind)
    first = build_optimizer(parts, plan)
    names = set(first.state_tensors())
    for step in range(3):
        give_gradients(parts, step)
        first.step(1.0)
    second_model = copy.deepcopy(parts)
    second = build_optimizer(second_model, plan)
    assert set(second.state_tensors()) == set(first.state_tensors()) == names
    assert all(tensor.count_nonzero() == 0 for tensor in second.state_tensors().values())
    for name, tensor in second.state_tensors().items():
        tensor.copy_(first.state_tensors()[name])
    for step in range(3, 6):
        for model, optimizer in ((parts, first), (second_model, second)):
            give_gradients(model, step)
            optimizer.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), second_model.parameters(), strict=True))
    assert int(second.state_tensors()[STEPS_TAKEN]) == second.steps_taken == 6
    assert all(torch.equal(tensor, second.state_tensors()[name]) for name, tensor in first.state_tensors().items())


@pytest.mark.parametrize(("kind", "keys"), KEYS)
def test_frozen_parts_hold_no_state_and_do_not_move(
    kind: str, keys: set[str], parts: nn.Module, stage: Stage, give_gradients: Give
) -> None:
    parts.get_submodule("decoder").requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}
    optimizer = build_optimizer(parts, stage(kind=kind))
    state = {name for name in optimizer.state_tensors() if name != STEPS_TAKEN}
    assert {name.partition(":")[2] for name in state} == keys
    assert not [name for name in state if name.startswith("decoder")]
    give_gradients(parts, 0)
    optimizer.step(1.0)
    moved = {name for name, parameter in parts.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith("decoder")}


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_state_is_in_the_precision_of_the_weights(kind: str, parts: nn.Module, stage: Stage, give_gradients: Give) -> None:
    parts.double()
    optimizer = build_optimizer(parts, stage(kind=kind))
    give_gradients(parts, 0)
    optimizer.step(1.0)
    assert {tensor.dtype for name, tensor in optimizer.state_tensors().items() if name != STEPS_TAKEN} == {torch.float64}


def test_rates_for_logs_follow_the_groups(parts: nn.Module, stage: Stage, give_gradients: Give) -> None:
    optimizer = build_optimizer(parts, stage(kind="adamw", connector_peak_lr=8e-2))
    give_gradients(parts, 0)
    optimizer.step(0.5)
    assert optimizer.group_rates() == {"model": 5e-3, "connector": 4e-2}


def test_names_are_the_models_own_whatever_it_is_wrapped_in(parts: nn.Module, stage: Stage) -> None:
    plain = set(build_optimizer(parts, stage()).state_tensors())
    parts.connector = checkpoint_wrapper(parts.get_submodule("connector"))
    assert set(build_optimizer(parts, stage()).state_tensors()) == plain


def test_a_model_with_nothing_to_train_is_refused(parts: nn.Module, stage: Stage) -> None:
    parts.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"model\.trainable leaves nothing to train"):
        build_optimizer(parts, stage())


def test_weights_in_half_precision_are_not_trained(parts: nn.Module, stage: Stage) -> None:
    with pytest.raises(TypeError, match="kept in float32"):
        build_optimizer(parts.bfloat16(), stage())
