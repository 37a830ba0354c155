"""The attention seam against a naive fp64 oracle, and what it promises about documents."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stagecoach.errors import ConfigError
from stagecoach_workloads.models import attention
from stagecoach_workloads.models.attention import PADDING_DOCUMENT, RowMask, attend, build_row_mask, document_starts, flex_mask


def oracle(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, ids_BT: Tensor, window: int | None) -> Tensor:
    """Attention position by position, in fp64."""
    q, k, v = (x.double() for x in (q_BTHK, k_BTGK, v_BTGK))
    repeats = q.shape[2] // k.shape[2]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [s for s in range(t + 1) if ids_BT[b, s] == ids_BT[b, t] and (window is None or t - s < window)]
            for h in range(q.shape[2]):
                keys, values = k[b, seen, h // repeats], v[b, seen, h // repeats]
                out[b, t, h] = (keys @ q[b, t, h] * q.shape[-1] ** -0.5).softmax(0) @ values
    return out


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_sdpa_equals_the_oracle(heads: tuple[int, int], window: int | None) -> None:
    T, (H, G) = 13, heads
    ids_BT = torch.tensor([[0] * 5 + [1] * 1 + [2] * 4 + [PADDING_DOCUMENT] * 3, [0] * 13])
    q, k, v = torch.randn(2, T, H, 8), torch.randn(2, T, G, 8), torch.randn(2, T, G, 8)
    out = attend(q, k, v, build_row_mask(ids_BT, window=window, length=T))
    assert (out - oracle(q, k, v, ids_BT, window)).abs().max() < 1e-6


def test_a_row_of_one_document_needs_no_ids() -> None:
    q, k, v = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    plain = attend(q, k, v, build_row_mask(None, length=9))
    assert (plain - attend(q, k, v, build_row_mask(torch.zeros(2, 9, dtype=torch.long), length=9))).abs().max() < 1e-6


def test_a_backend_that_cannot_run_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'flex' runs on CUDA only and the batch is on cpu; use 'sdpa'"):
        build_row_mask(torch.zeros(1, 4, dtype=torch.long), length=4, backend="flex")
    with pytest.raises(ConfigError, match="sliding window"):
        build_row_mask(None, window=3, length=4)


def test_document_starts_have_few_lengths() -> None:
    starts = document_starts(torch.tensor([[0, 0, 1, 1], [0, 1, 2, -1]]))
    assert starts[:7].tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert starts.shape == (65,)
    assert starts[7:].eq(8).all()  # empty documents
    assert document_starts(torch.arange(200)[None]).shape == (257,)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("window", [None, 4])
def test_flex_masks_equal_the_oracle_inside_a_compiled_block(window: int | None) -> None:
    """The forward pass alone runs on CPU; tests/gpu has both directions."""
    ids_BT = torch.tensor([[0] * 50 + [1] * 60 + [PADDING_DOCUMENT] * 18, [0] * 128])
    q, k, v = torch.randn(2, 128, 4, 16), torch.randn(2, 128, 2, 16), torch.randn(2, 128, 2, 16)
    mask = RowMask(backend="flex", blocks=flex_mask(ids_BT, window))
    torch.compiler.reset()
    with torch.no_grad():
        out = torch.compile(attend, backend="aot_eager")(q, k, v, mask)
    assert (out - attend(q, k, v, build_row_mask(ids_BT, window=window, length=128))).abs().max() < 1e-5


# --- varlen by feature: GPU hosts carry torch 2.11 to 2.13, whose `varlen_attn` know different keywords -----------------------------


def packed_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *, window: int | None) -> Tensor:
    """What a varlen kernel computes, from the same boundaries."""
    out, length = torch.empty_like(q), q.shape[0]
    ids = torch.bucketize(torch.arange(length), starts[1:].long(), right=True)
    out[:] = oracle(q[None], k[None], v[None], ids[None], window)[0]
    return out


def newer(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, _max_q: int, _max_k: int, *, window_size: tuple[int, int],
          enable_gqa: bool = False) -> Tensor:  # fmt: skip
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert window_size[1] == 0
    assert torch.equal(cu_q, cu_k)
    return packed_attention(q, k, v, cu_q, window=None if window_size[0] == -1 else window_size[0] + 1)


def older(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, _cu_k: Tensor, _max_q: int, _max_k: int, is_causal: bool = False) -> Tensor:
    assert is_causal
    assert q.shape[1] == k.shape[1]  # it cannot group: keys and values come repeated
    return packed_attention(q, k, v, cu_q, window=None)


@pytest.mark.parametrize(("function", "window"), [(newer, None), (newer, 4), (older, None)])
def test_varlen_is_called_as_this_torch_knows_it(
    function: Callable[..., Tensor], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_varlen(function, monkeypatch)
    ids_BT = torch.tensor([[0] * 5 + [1] * 4, [3] * 2 + [4] * 7])
    q, k, v = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    mask = RowMask(backend="varlen", starts=document_starts(ids_BT), longest=9, window=window)
    assert (attend(q, k, v, mask) - oracle(q, k, v, ids_BT, window)).abs().max() < 1e-6


def test_what_an_older_varlen_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_varlen(older, monkeypatch)
    mask = RowMask(backend="varlen", starts=document_starts(torch.zeros(1, 4, dtype=torch.long)), longest=4, window=2)
    with pytest.raises(ConfigError, match="has no sliding window; use the 'flex' attention backend"):
        attend(*(torch.randn(1, 4, 2, 8) for _ in range(3)), mask)
    monkeypatch.setattr(attention, "_varlen_attn", None)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)  # a torch without it
    with pytest.raises(ConfigError, match=r"'varlen' needs torch >= 2.10, this is .*; use 'flex'"):
        attention._find_varlen()


def use_varlen(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the seam find this function in place of torch's."""
    monkeypatch.setattr(attention, "_varlen_attn", None)
    module = type(sys)("torch.nn.attention.varlen")
    module.varlen_attn = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    monkeypatch.setattr(attention, "_varlen_knows", frozenset())
    attention._find_varlen()
