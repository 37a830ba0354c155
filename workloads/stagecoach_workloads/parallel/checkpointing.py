"""Activation checkpointing: trading compute for memory, block by block.

A block's `forward` is wrapped, not the block: names of parameters stay as they are, and what sharding hooks onto the block stays
outside of what is computed twice.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]

_SAVED = (
    "mm.default", "addmm.default", "bmm.default", "baddbmm.default", "_grouped_mm.default", "convolution.default",
    "_scaled_dot_product_efficient_attention.default", "_scaled_dot_product_flash_attention.default",
    "_scaled_dot_product_cudnn_attention.default", "_scaled_dot_product_flash_attention_for_cpu.default",
    "_scaled_dot_product_fused_attention_overrideable.default",
)  # fmt: skip


def apply_activation_checkpointing(blocks: list[nn.Module], recompute: Recompute) -> None:
    """`full` keeps a block's inputs only; `selective` also the outputs of what is expensive (matmuls, attention), so that norms and
    activation functions are computed again and nothing else. Call it before compiling and sharding."""
    if recompute == "none":
        return
    context = _selective_contexts if recompute == "selective" else None
    for block in blocks:
        block.forward = partial(_recomputed, block.forward, context)


def _recomputed(forward: Any, context: Any, /, *args: Any, **kwargs: Any) -> Any:
    extra = {"context_fn": context} if context is not None else {}
    # No dropout anywhere in our models: random numbers need not be kept.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **extra, **kwargs)


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _saved_operations() else CheckpointPolicy.PREFER_RECOMPUTE


_found: set[Any] = set()


def _saved_operations() -> set[Any]:
    """The operations of this torch among `_SAVED`, and FlexAttention."""
    if not _found:
        for name in _SAVED:
            packet, _, overload = name.partition(".")
            if hasattr(torch.ops.aten, packet):
                _found.add(getattr(getattr(torch.ops.aten, packet), overload))
        flex = getattr(torch.ops.higher_order, "flex_attention", None)
        if flex is not None:
            _found.add(flex)
    return _found
