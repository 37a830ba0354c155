"""Sparse experts against a naive loop over tokens."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import Moe
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.attention import build_row_mask
from stagecoach_workloads.models.decoder import Decoder, is_sparse_layer
from stagecoach_workloads.models.moe import MoeFeedForward, can_group, within_capacity

N, D, FF, E = 20, 16, 24, 4


def build(top_k: int = 2, capacity_factor: float | None = None) -> MoeFeedForward:
    moe = MoeFeedForward(width=D, ffn_width=FF, experts=E, top_k=top_k, capacity_factor=capacity_factor)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe


def naive(moe: MoeFeedForward, x_ND: Tensor, capacity: int | None = None, real: list[bool] | None = None) -> Tensor:
    """Token by token, first choices of all tokens before second ones."""
    probabilities = (x_ND @ moe.router.weight.T).softmax(-1)
    gates, experts = probabilities.topk(moe.top_k, dim=-1)
    gates = gates / gates.sum(-1, keepdim=True)
    used, rows = [0] * E, [torch.zeros(D) for _ in range(len(x_ND))]
    for choice in range(moe.top_k):
        for token in range(len(x_ND)):
            if capacity is not None:
                if real is not None and not real[token]:
                    continue
                used[experts[token, choice]] += 1
                if used[experts[token, choice]] > capacity:
                    continue
            e = experts[token, choice]
            out = (F.silu(x_ND[token] @ moe.gate[e]) * (x_ND[token] @ moe.up[e])) @ moe.down[e]
            rows[token] = rows[token] + gates[token, choice] * out
    return torch.stack(rows)


@pytest.mark.parametrize("math", ["grouped", "loop"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("capacity_factor", [None, 0.6, 2.0])
def test_experts_equal_a_naive_loop_forward_and_backward(math: str, top_k: int, capacity_factor: float | None) -> None:
    moe = build(top_k, capacity_factor)
    moe.math = math  # type: ignore[assignment]
    x = torch.randn(N, D, requires_grad=True)
    weights = torch.randn(N, D)
    capacity = None if capacity_factor is None else -(-int(capacity_factor * N * 10) // (10 * E))
    expected = naive(moe, x, capacity)
    (expected * weights).sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in moe.named_parameters()} | {"x": x.grad.clone()}
    moe.zero_grad()
    x.grad = None
    actual = moe(x[None])[0][0]
    (actual * weights).sum().backward()
    assert (actual - expected).abs().max() < 1e-5
    for name, grad in wanted.items():
        mine = x.grad if name == "x" else dict(moe.named_parameters())[name].grad
        assert (mine - grad).abs().max() < 1e-4, name


def test_losses_equal_their_definitions_and_leave_padding_out() -> None:
    moe = build()
    x = torch.randn(1, N, D)
    logits = x[0] @ moe.router.weight.T
    first, mean = logits.argmax(-1), logits.softmax(-1).mean(0)
    balance = E**2 * sum((first == e).float().mean() * mean[e] for e in range(E)) / E
    losses = moe(x)[1]
    assert (losses.load_balance - balance).abs() < 1e-5
    assert (losses.router_z - logits.logsumexp(-1).square().mean()).abs() < 1e-5
    padded = torch.cat((x, torch.randn(1, 7, D)), dim=1)
    real = torch.arange(N + 7)[None] < N
    again = moe(padded, real)[1]
    assert (again.load_balance - losses.load_balance).abs() < 1e-6
    assert (again.router_z - losses.router_z).abs() < 1e-5


def test_even_routing_has_load_balance_one() -> None:
    moe = build(top_k=1)
    torch.nn.init.zeros_(moe.router.weight)
    losses = moe(torch.randn(1, N, D))[1]
    assert losses.load_balance.item() == pytest.approx(1.0)


def test_padding_takes_no_capacity() -> None:
    experts_Nk = torch.tensor([[0, 1], [0, 1], [0, 2], [0, 3]])
    kept = within_capacity(experts_Nk, E, 1, torch.tensor([False, True, True, True]))
    assert kept.tolist() == [[False, False], [True, True], [False, True], [False, True]]


def test_first_choices_queue_before_second_ones() -> None:
    kept = within_capacity(torch.tensor([[1, 0], [0, 1]]), E, 1, None)
    assert kept.tolist() == [[True, False], [True, False]]


def test_an_upcycled_decoder_equals_its_dense_parent(tiny_decoder: Callable[..., DecoderPlan]) -> None:
    plan = tiny_decoder()
    dense = Decoder(plan)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sparse = Decoder(replace(plan, moe=Moe(experts=4, every=2)))
    sparse.load_state_dict(dense.state_dict(), strict=False)
    for layer, block in enumerate(sparse.blocks):
        if is_sparse_layer(sparse.plan, layer):
            parent = dense.blocks[layer].ffn
            torch.nn.init.normal_(block.ffn.router.weight)
            block.ffn.upcycle(parent.gate.weight, parent.up.weight, parent.down.weight)
    assert [is_sparse_layer(sparse.plan, layer) for layer in range(3)] == [False, True, False]
    tokens, positions = torch.randint(0, 61, (2, 9)), torch.arange(9).expand(2, 9)
    mask = build_row_mask(None, length=9)
    with torch.no_grad():
        difference = sparse(sparse.embed(tokens), positions, mask).hidden_BTD - dense(dense.embed(tokens), positions, mask).hidden_BTD
    assert difference.abs().max() < 1e-5


def test_shapes_that_cannot_work_are_named(tiny_decoder: Callable[..., DecoderPlan]) -> None:
    with pytest.raises(ConfigError, match=r"decoder.moe.top_k=5 exceeds decoder.moe.experts=4"):
        Decoder(tiny_decoder(moe=Moe(experts=4, every=1, top_k=5)))
    with pytest.raises(ConfigError, match=r"decoder.heads=4 is no multiple of decoder.kv_heads=3"):
        Decoder(tiny_decoder(kv_heads=3))


def test_grouped_gemm_is_found_under_either_name_and_the_loop_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has it as F.grouped_mm, before as torch._grouped_mm, and once had none."""
    moe = MoeFeedForward(width=16, ffn_width=32, experts=4).bfloat16()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 12, 16, dtype=torch.bfloat16)
    weights = moe.gate, moe.up, moe.down
    moe.math = "loop"
    expected = moe(x)[0]
    moe.math = "auto"
    calls: list[str] = []
    real = getattr(torch, "_grouped_mm", None) or F.grouped_mm  # the one calls the other

    def counted(name: str) -> Callable[..., torch.Tensor]:
        return lambda *args, **options: (calls.append(name), real(*args, **options))[1]

    monkeypatch.setattr(F, "grouped_mm", counted("new"), raising=False)
    monkeypatch.setattr(torch, "_grouped_mm", counted("old"), raising=False)
    assert can_group(x[0], *weights)
    assert (moe(x)[0] - expected).abs().max() < 0.02 * expected.abs().max()
    monkeypatch.delattr(F, "grouped_mm")
    assert (moe(x)[0] - expected).abs().max() < 0.02 * expected.abs().max()
    assert calls == ["new"] * 3 + ["old"] * 3
    monkeypatch.delattr(torch, "_grouped_mm")
    assert not can_group(x[0], *weights)
    assert torch.equal(moe(x)[0], expected)
