"""The language model. B rows, T positions, D width, H query heads, G key/value heads, K head width, F feed-forward width, V vocabulary.

The Llama family's decoder (arXiv:2302.13971): pre-norm blocks with RMSNorm (arXiv:1910.07467), rotary positions, grouped-query
attention (arXiv:2305.13245) and SwiGLU (arXiv:2002.05202). Qwen2 adds query/key/value biases, Phi-3 a sliding window and longrope.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.attention import RowMask, attend
from stagecoach_workloads.models.moe import MoeFeedForward, RouterLosses
from stagecoach_workloads.models.norm import RmsNorm
from stagecoach_workloads.models.rotary import Rotary, rotate


class LayerCache(Protocol):
    """One layer's keys and values while generating."""

    def extend(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new positions and returns keys and values of all so far, BSGK."""
        ...


class DecoderOutput(NamedTuple):
    """What the blocks made, after the last norm."""

    hidden_BTD: Tensor
    router: RouterLosses | None  # means over the sparse layers; None for a dense decoder


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, plan: DecoderPlan) -> None:
        super().__init__()
        self.head_dim = plan.head_dim
        queries, keys = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
        self.q = nn.Linear(plan.width, queries, bias=plan.qkv_bias)
        self.k = nn.Linear(plan.width, keys, bias=plan.qkv_bias)
        self.v = nn.Linear(plan.width, keys, bias=plan.qkv_bias)
        self.o = nn.Linear(queries, plan.width, bias=plan.output_bias)

    def forward(self, x_BTD: Tensor, cos_BTF: Tensor, sin_BTF: Tensor, mask: RowMask, cache: LayerCache | None = None) -> Tensor:
        """Returns out_BTD."""
        B, T, _ = x_BTD.shape
        q_BTHK = rotate(self.q(x_BTD).view(B, T, -1, self.head_dim), cos_BTF, sin_BTF)
        k_BTGK = rotate(self.k(x_BTD).view(B, T, -1, self.head_dim), cos_BTF, sin_BTF)
        v_BTGK = self.v(x_BTD).view(B, T, -1, self.head_dim)
        if cache is not None:
            k_BTGK, v_BTGK = cache.extend(k_BTGK, v_BTGK)
        return self.o(attend(q_BTHK, k_BTGK, v_BTGK, mask).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU: silu(gate(x)) * up(x), projected down."""

    def __init__(self, plan: DecoderPlan) -> None:
        super().__init__()
        self.gate = nn.Linear(plan.width, plan.ffn_width, bias=plan.ffn_bias)
        self.up = nn.Linear(plan.width, plan.ffn_width, bias=plan.ffn_bias)
        self.down = nn.Linear(plan.ffn_width, plan.width, bias=plan.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns out_BTD."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class DecoderBlock(nn.Module):
    """Attention, then a dense or sparse feed-forward, each on a normed copy and added back. The unit of sharding, recompute and compile."""

    def __init__(self, plan: DecoderPlan, *, sparse: bool) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(plan.width, eps=plan.norm_eps)
        self.attention = Attention(plan)
        self.ffn_norm = RmsNorm(plan.width, eps=plan.norm_eps)
        self.ffn = build_sparse(plan) if sparse else FeedForward(plan)

    def forward(
        self, x_BTD: Tensor, cos_BTF: Tensor, sin_BTF: Tensor, mask: RowMask, cache: LayerCache | None = None
    ) -> tuple[Tensor, RouterLosses | None]:
        """Returns (out_BTD, router losses or None)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_BTF, sin_BTF, mask, cache)
        if isinstance(self.ffn, MoeFeedForward):
            out_BTD, losses = self.ffn(self.ffn_norm(x_BTD), mask.real_BT)
            return x_BTD + out_BTD, losses
        return x_BTD + self.ffn(self.ffn_norm(x_BTD)), None


class Decoder(nn.Module):
    """Embeddings, blocks, last norm and head. The head is the embedding itself when tied: `head_weight` is whichever it is."""

    def __init__(self, plan: DecoderPlan) -> None:
        super().__init__()
        check_decoder(plan)
        self.plan = plan
        rows = plan.vocab_size + plan.added_tokens
        self.embed = nn.Embedding(rows, plan.width)
        self.blocks = nn.ModuleList(DecoderBlock(plan, sparse=is_sparse_layer(plan, layer)) for layer in range(plan.layers))
        self.norm = RmsNorm(plan.width, eps=plan.norm_eps)
        self.head = None if plan.tied_embeddings else nn.Linear(plan.width, rows, bias=False)
        self.rotary = Rotary(head_dim=plan.head_dim, theta=plan.rope_theta, scaling=plan.rope_scaling, max_positions=plan.max_positions)

    @property
    def head_weight(self) -> Tensor:
        """The weight_VD that turns hidden states into logits."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        embeddings_BTD: Tensor,
        positions_BT: Tensor,
        mask: RowMask,
        caches: list[LayerCache] | None = None,
        lengths_BT: Tensor | None = None,
    ) -> DecoderOutput:
        """Runs the blocks on embeddings (of tokens, or of images in their places).

        `positions_BT` restart at 0 in each document. `lengths_BT` (or B1): of each position's document, for longrope; T when None.
        """
        cos_BTF, sin_BTF = self.rotary(positions_BT, length=embeddings_BTD.shape[1] if lengths_BT is None else lengths_BT)
        x_BTD, losses = embeddings_BTD, []
        for layer, block in enumerate(self.blocks):
            x_BTD, router = block(x_BTD, cos_BTF, sin_BTF, mask, caches[layer] if caches else None)
            if router is not None:
                losses.append(router)
        return DecoderOutput(self.norm(x_BTD), mean_losses(losses))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Returns logits_BTV."""
        return F.linear(hidden_BTD, self.head_weight)


def build_sparse(plan: DecoderPlan) -> MoeFeedForward:
    """The sparse feed-forward that `plan.moe` asks for."""
    assert plan.moe is not None
    return MoeFeedForward(
        width=plan.width,
        ffn_width=plan.ffn_width,
        experts=plan.moe.experts,
        top_k=plan.moe.top_k,
        capacity_factor=plan.moe.capacity_factor,
    )


def is_sparse_layer(plan: DecoderPlan, layer: int) -> bool:
    """Every `every`-th layer is sparse, so the last of each group: layers 1, 3, 5, ... for every = 2 (counted from 0), as in GShard."""
    return plan.moe is not None and layer % plan.moe.every == plan.moe.every - 1


def mean_losses(losses: list[RouterLosses]) -> RouterLosses | None:
    """Means over sparse layers, as AXLearn's repeated layers give."""
    if not losses:
        return None
    return RouterLosses(*(torch.stack(values).mean() for values in zip(*losses, strict=True)))


def check_decoder(plan: DecoderPlan) -> None:
    """Raises ConfigError for shapes that cannot work."""
    if plan.heads % plan.kv_heads:
        raise ConfigError(f"decoder.heads={plan.heads} is no multiple of decoder.kv_heads={plan.kv_heads}; use a divisor of the heads")
    if plan.moe is not None and plan.moe.top_k > plan.moe.experts:
        raise ConfigError(f"decoder.moe.top_k={plan.moe.top_k} exceeds decoder.moe.experts={plan.moe.experts}; use at most all experts")
    if plan.moe is not None and plan.ffn_bias:
        raise ConfigError("decoder.ffn_bias=true with decoder.moe: experts have no biases; set decoder.ffn_bias=false")
