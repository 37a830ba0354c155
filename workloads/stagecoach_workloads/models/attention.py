"""Attention behind one seam. B rows, T queries, S keys, H query heads, G key/value heads (H a multiple of G), K head width.

A row is packed from documents that cannot see each other. `RowMask` says so once per forward, in the form that the chosen backend
reads; every layer then calls `attend`. Backends: `sdpa` (PyTorch's, with a dense block mask: any device, and the oracle on CPU),
`flex` (FlexAttention with a block mask: CUDA) and `varlen` (variable-length flash attention: CUDA, half precision).
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.errors import ConfigError

Backend = Literal["sdpa", "flex", "varlen"]
PADDING_DOCUMENT = -1  # positions of no document; they see each other and nobody sees them


@dataclass(frozen=True, kw_only=True)
class RowMask:
    """Who sees whom in packed rows: causal, within a document, within the sliding window. One of the forms below is set."""

    backend: Backend = "sdpa"
    real_BT: Tensor | None = None  # bool; None: every position is real
    dense_B1TS: Tensor | None = None  # bool, True: seen (sdpa); None: plain causal
    blocks: Any = None  # flex: a BlockMask
    starts: Tensor | None = None  # varlen: int32 document boundaries over the B * T positions, the end repeated to a static length
    longest: int = 0  # varlen: upper bound of a document's length
    window: int | None = None


def default_backend(device: torch.device) -> Backend:
    """What is fastest and complete on this kind of device: flex on CUDA, sdpa elsewhere (flex has no backward on CPU, varlen no kernel)."""
    return "flex" if device.type == "cuda" else "sdpa"


def build_row_mask(document_ids_BT: Tensor | None, *, window: int | None = None, length: int, backend: Backend = "sdpa") -> RowMask:
    """Makes the mask of one batch. `document_ids_BT` None means one document a row and no padding; `length` is T.

    Raises ConfigError when the backend cannot run on the ids' device. Costs one device sync with `varlen`, none otherwise.
    """
    if document_ids_BT is None:
        if window is None or window >= length:
            return RowMask(backend="sdpa", window=None)
        raise ConfigError("a sliding window shorter than the row needs document ids; pass zeros of shape (rows, length)")
    real_BT = document_ids_BT != PADDING_DOCUMENT
    if backend == "sdpa":
        return RowMask(real_BT=real_BT, dense_B1TS=dense_mask(document_ids_BT, window), window=window)
    if document_ids_BT.device.type != "cuda":
        raise ConfigError(f"attention backend {backend!r} runs on CUDA only and the batch is on {document_ids_BT.device}; use 'sdpa'")
    if backend == "flex":
        return RowMask(backend="flex", real_BT=real_BT, blocks=flex_mask(document_ids_BT, window), window=window)
    _find_varlen()
    starts = document_starts(document_ids_BT)
    return RowMask(backend="varlen", real_BT=real_BT, starts=starts, longest=document_ids_BT.shape[1], window=window)


def dense_mask(document_ids_BT: Tensor, window: int | None) -> Tensor:
    """Returns seen_B1TS: the key is not later than the query, of the same document, and less than `window` positions back."""
    T = document_ids_BT.shape[1]
    place_T = torch.arange(T, device=document_ids_BT.device)
    back_TS = place_T[:, None] - place_T[None, :]
    near_TS = back_TS >= 0 if window is None else (back_TS >= 0) & (back_TS < window)
    same_BTS = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return (same_BTS & near_TS)[:, None]


def document_starts(document_ids_BT: Tensor, *, at_least: int = 64) -> Tensor:
    """Returns int32 boundaries over the flattened rows, padded with the end to a power of two, so that few lengths are ever compiled."""
    first_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    first_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    begins = first_BT.flatten().nonzero().flatten()
    size = max(at_least, 1 << int(begins.numel()).bit_length())
    starts = torch.full((size + 1,), document_ids_BT.numel(), dtype=torch.int32, device=document_ids_BT.device)
    starts[: begins.numel()] = begins.to(torch.int32)
    return starts


def document_lengths(document_ids_BT: Tensor) -> Tensor:
    """Returns lengths_BT: of each position's document (a run of equal ids). Costs no device sync."""
    index_BT = torch.zeros_like(document_ids_BT)
    index_BT[:, 1:] = (document_ids_BT[:, 1:] != document_ids_BT[:, :-1]).cumsum(1)
    counts_BT = torch.zeros_like(index_BT).scatter_add_(1, index_BT, torch.ones_like(index_BT))
    return counts_BT.gather(1, index_BT)


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: RowMask) -> Tensor:
    """Causal grouped-query attention (arXiv:2305.13245) under `mask`. Returns out_BTHK, scaled by K ** -0.5."""
    if mask.backend == "varlen":
        return _varlen(q_BTHK, k_BSGK, v_BSGK, mask)
    q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    if mask.backend == "flex":
        out = _flex(q, k, v, mask, grouped)
    elif mask.dense_B1TS is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] == k.shape[2] > 1, enable_gqa=grouped)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.dense_B1TS, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_all(q_BTHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, seen_BS: Tensor | None = None) -> Tensor:
    """Attention without order, of images. Returns out_BTHK. `seen_BS` (bool) hides keys; a row must see at least one."""
    q, k, v = q_BTHK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHK.transpose(1, 2)
    mask = None if seen_BS is None else seen_BS[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


# --- CUDA backends, found by feature since GPU hosts may carry torch 2.11 ------------------------------------------------------


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # uncompiled, it materialises all scores


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: RowMask, grouped: bool) -> Tensor:
    """Compiled on its own, or as part of a block that is being compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention(q, k, v, block_mask=mask.blocks, enable_gqa=grouped)
    return _compiled_flex()(q, k, v, block_mask=mask.blocks, enable_gqa=grouped)


def flex_mask(document_ids_BT: Tensor, window: int | None) -> Any:
    """The block mask of packed rows: made anew for each batch, never compiled into a graph."""
    from torch.nn.attention.flex_attention import create_block_mask

    B, T = document_ids_BT.shape

    def seen(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = (q >= k) & (document_ids_BT[b, q] == document_ids_BT[b, k])
        return visible if window is None else visible & (q - k < window)

    return create_block_mask(seen, B, None, T, T, device=document_ids_BT.device)


_varlen_attn: Any = None
_varlen_knows: frozenset[str] = frozenset()


def _find_varlen() -> None:
    """Looks once for the function and what this torch's version of it can do: outside the layers, which may be compiled."""
    global _varlen_attn, _varlen_knows
    if _varlen_attn is not None:
        return
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as missing:
        raise ConfigError(f"attention backend 'varlen' needs torch >= 2.10, this is {torch.__version__}; use 'flex'") from missing
    _varlen_attn, _varlen_knows = varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def _varlen(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: RowMask) -> Tensor:
    known = _varlen_knows
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1 if mask.window is None else mask.window - 1, 0)
    elif mask.window is None:
        options["is_causal"] = True
    else:
        raise ConfigError(f"varlen_attn of torch {torch.__version__} has no sliding window; use the 'flex' attention backend")
    if k_BSGK.shape[2] != q_BTHK.shape[2]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            repeats = q_BTHK.shape[2] // k_BSGK.shape[2]
            k_BSGK, v_BSGK = k_BSGK.repeat_interleave(repeats, 2), v_BSGK.repeat_interleave(repeats, 2)
    flat = [x.flatten(0, 1) for x in (q_BTHK, k_BSGK, v_BSGK)]
    out = _varlen_attn(*flat, mask.starts, mask.starts, mask.longest, mask.longest, **options)
    return out.view(q_BTHK.shape)
