"""Sparse mixture of experts. N tokens (rows flattened), D model width, F feed-forward width, E experts, k choices a token.

Token-choice routing as in GShard (arXiv:2006.16668) and ST-MoE (arXiv:2202.08906), with AXLearn's load-balance form; MM1 section 3.3
uses top-2, load balance 0.01 and router z 0.001. Up-cycling from a dense feed-forward: arXiv:2212.05055.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ExpertMath = Literal["auto", "grouped", "loop"]


class RouterLosses(NamedTuple):
    """Unweighted means over real tokens (and, from `Decoder`, over sparse layers): fp32 scalars."""

    load_balance: Tensor  # E * sum over experts of (share of tokens whose first choice it is) * (mean probability): 1 when even
    router_z: Tensor  # mean of logsumexp(router logits) ** 2


class Routing(NamedTuple):
    """Where tokens go."""

    experts_Nk: Tensor  # int64
    gates_Nk: Tensor  # fp32; sums to 1 a token, less where capacity dropped a choice
    losses: RouterLosses


class MoeFeedForward(nn.Module):
    """SwiGLU experts of which each token uses `top_k`; `capacity_factor` None is dropless.

    With a capacity every expert takes at most ceil(capacity_factor * N / E) choices of the N real tokens; all first choices queue
    before all second ones, and what finds no place adds nothing (GShard). `math`: grouped GEMM where
    torch has it and the widths are aligned, or a loop.
    """

    def __init__(self, *, width: int, ffn_width: int, experts: int, top_k: int = 2, capacity_factor: float | None = None) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.capacity_factor = experts, top_k, capacity_factor
        self.math: ExpertMath = "auto"
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, width, ffn_width))  # E D F: tokens multiply from the left
        self.up = nn.Parameter(torch.empty(experts, width, ffn_width))
        self.down = nn.Parameter(torch.empty(experts, ffn_width, width))

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, RouterLosses]:
        """Returns (out_BTD, losses). Positions that `real_BT` says are padding take no capacity and do not count in the losses."""
        x_ND = x_BTD.flatten(0, 1)
        real_N = None if real_BT is None else real_BT.flatten()
        routing = route(self._logits(x_ND), self.top_k, self.capacity_factor, real_N)
        order = routing.experts_Nk.flatten().argsort(stable=True)  # choices, grouped by expert
        counts_E = choice_counts(routing.experts_Nk.flatten(), self.num_experts)
        gathered = x_ND[order // self.top_k]
        outputs = self._experts(gathered, counts_E) * routing.gates_Nk.flatten()[order, None].to(x_ND.dtype)
        out_ND = torch.zeros_like(x_ND).index_add(0, order // self.top_k, outputs.to(x_ND.dtype))
        return out_ND.view_as(x_BTD), routing.losses

    def _logits(self, x_ND: Tensor) -> Tensor:
        """Router logits in fp32, whatever the compute type: small differences choose the expert."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.float(), self.router.weight.float())

    def _experts(self, x: Tensor, counts_E: Tensor) -> Tensor:
        """SwiGLU of each expert on its run of rows."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        gate, up, down = self.gate.to(x.dtype), self.up.to(x.dtype), self.down.to(x.dtype)
        if self.math == "grouped" or (self.math == "auto" and can_group(x, gate, up, down)):
            return grouped_swiglu(x, gate, up, down, counts_E)
        return looped_swiglu(x, gate, up, down, counts_E)

    @torch.no_grad()
    def upcycle(self, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Makes every expert a copy of a dense feed-forward (linear weights, so out x in)."""
        self.gate.copy_(gate_FD.T.expand_as(self.gate))
        self.up.copy_(up_FD.T.expand_as(self.up))
        self.down.copy_(down_DF.T.expand_as(self.down))


def choice_counts(experts: Tensor, num_experts: int) -> Tensor:
    """How many choices each expert got, int32, without reading the device (bincount's output size would)."""
    counts = torch.zeros(num_experts, dtype=torch.int32, device=experts.device)
    return counts.index_add(0, experts, torch.ones_like(experts, dtype=torch.int32))


def route(logits_NE: Tensor, top_k: int, capacity_factor: float | None, real_N: Tensor | None) -> Routing:
    """Greedy top-k with gates renormalised to sum to 1."""
    N, E = logits_NE.shape
    probabilities_NE = logits_NE.softmax(-1)
    gates_Nk, experts_Nk = probabilities_NE.topk(top_k, dim=-1)
    gates_Nk = gates_Nk / gates_Nk.sum(-1, keepdim=True)
    if capacity_factor is not None:
        gates_Nk = gates_Nk * within_capacity(experts_Nk, E, capacity(N, E, capacity_factor, real_N), real_N)
    return Routing(experts_Nk, gates_Nk, router_losses(logits_NE, probabilities_NE, experts_Nk[:, 0], real_N))


def capacity(N: int, E: int, factor: float, real_N: Tensor | None) -> int | Tensor:
    """Choices an expert takes: by real tokens, so that padding a batch makes no room; left on the device, which nobody waits for."""
    return math.ceil(factor * N / E) if real_N is None else (factor * real_N.sum(dtype=torch.float64) / E).ceil()


def within_capacity(experts_Nk: Tensor, num_experts: int, capacity: int | Tensor, real_N: Tensor | None) -> Tensor:
    """Returns kept_Nk (bool): the choice is among the expert's first `capacity`, first choices of all tokens before second ones."""
    N, k = experts_Nk.shape
    queue = F.one_hot(experts_Nk.T.reshape(-1), num_experts)  # first choices, then second choices
    if real_N is not None:
        queue = queue * real_N.repeat(k)[:, None]
    place = (queue.cumsum(0) * queue).sum(-1)  # 1 is the first in the queue, 0 is padding
    return ((place > 0) & (place <= capacity)).view(k, N).T


def router_losses(logits_NE: Tensor, probabilities_NE: Tensor, first_N: Tensor, real_N: Tensor | None) -> RouterLosses:
    """The two auxiliary losses over real tokens, before their weights."""
    E = logits_NE.shape[1]
    real = torch.ones_like(logits_NE[:, 0]) if real_N is None else real_N.to(logits_NE.dtype)
    count = real.sum().clamp(min=1)
    share_E = (F.one_hot(first_N, E) * real[:, None]).sum(0) / count
    mean_E = (probabilities_NE * real[:, None]).sum(0) / count
    router_z = (logits_NE.logsumexp(-1).square() * real).sum() / count
    return RouterLosses(load_balance=E * (share_E * mean_E).sum(), router_z=router_z)


# --- expert math ---------------------------------------------------------------------------------------------------------------


def can_group(x: Tensor, *weights: Tensor) -> bool:
    """True when torch has grouped GEMM for these: bf16 (its tracing knows nothing else), inner sizes of 16-byte multiples."""
    if _grouped_mm() is None or x.dtype != torch.bfloat16:
        return False
    return all(size * w.element_size() % 16 == 0 for w in weights for size in w.shape[1:])


def grouped_swiglu(x: Tensor, gate_EDF: Tensor, up_EDF: Tensor, down_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """One GEMM per projection over all experts; group ends stay on the device."""
    grouped_mm, ends = _grouped_mm(), counts_E.cumsum(0, dtype=torch.int32)
    hidden = F.silu(grouped_mm(x, gate_EDF, offs=ends)) * grouped_mm(x, up_EDF, offs=ends)
    return grouped_mm(hidden, down_EFD, offs=ends)


def looped_swiglu(x: Tensor, gate_EDF: Tensor, up_EDF: Tensor, down_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """The same, an expert after the other; reads the counts from the device. Every expert takes part, so that all get a gradient."""
    parts = torch.split(x, counts_E.tolist())
    outputs = [(F.silu(rows @ gate_EDF[e]) * (rows @ up_EDF[e])) @ down_EFD[e] for e, rows in enumerate(parts)]
    return torch.cat(outputs)


def _grouped_mm() -> Any:
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
