"""Losses that never hold all logits. N positions, D model width, V vocabulary, C positions of one chunk.

Chunked linear cross-entropy: logits of C positions at a time, their gradient taken at once and folded into those of hidden states and
head, so that memory is C x V instead of N x V (the idea of Liger's fused linear cross-entropy, arXiv:2410.10989). z-loss: PaLM,
arXiv:2204.02311 section 5.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
CHUNK = 1024  # positions; at a vocabulary of 32k its fp32 logits are 128 MiB
CPU_CHUNK = 512  # smaller logits are memory that the allocator gives again, where larger ones are new pages from the kernel each time


class TokenLoss(NamedTuple):
    """Sums over target tokens. Divide by the global count of targets, once."""

    loss_sum: Tensor  # fp32 scalar: cross-entropy and z-loss
    num_targets: Tensor  # int64 scalar
    each_N: Tensor | None = None  # detached: each position's cross-entropy, 0 where nothing is predicted. For logs by category


def chunked_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, z_loss: float = 0.0, chunk: int | None = None
) -> TokenLoss:
    """Cross-entropy of `hidden_ND @ weight_VD.T` summed over labels that are not IGNORE_INDEX, plus z_loss * sum of logsumexp ** 2.

    A label is what its own position must predict: the shift by one was made where documents' ends are known, in the data. Its backward
    runs once (a second one is torch's RuntimeError): it scales the gradients where they lie. `chunk` None: what suits the device.
    """
    chunk = chunk or default_chunk(hidden_ND.device)
    if torch.is_autocast_enabled(hidden_ND.device.type):
        compute = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(compute), weight_VD.to(compute)
    loss_sum: Tensor
    each_N: Tensor
    loss_sum, each_N = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, z_loss, chunk)  # type: ignore[no-untyped-call]
    return TokenLoss(loss_sum, (labels_N != IGNORE_INDEX).sum(), each_N)


def at_least_fp32(logits: Tensor) -> Tensor:
    """fp64 stays: what is checked to nine digits is computed so."""
    return logits if logits.dtype == torch.float64 else logits.float()


def default_chunk(device: torch.device) -> int:
    """Positions of a chunk: enough for full speed of the GEMMs, few enough that their logits stay small."""
    return CPU_CHUNK if device.type == "cpu" else CHUNK


def chunked_log_probs(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, chunk: int | None = None) -> Tensor:
    """Returns log_probs_N (fp32) of the labels, 0 where ignored; gradients recompute a chunk's logits. For preference losses and scores."""
    chunk = chunk or default_chunk(hidden_ND.device)
    if hidden_ND.shape[0] == 0:
        return hidden_ND.new_zeros(0, dtype=torch.float32)
    parts = []
    for hidden_CD, labels_C in zip(torch.split(hidden_ND, chunk), torch.split(labels_N, chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_log_probs, hidden_CD, weight_VD, labels_C, use_reentrant=False))
        else:
            parts.append(_log_probs(hidden_CD, weight_VD, labels_C))
    return torch.cat(parts)


def _log_probs(hidden_CD: Tensor, weight_VD: Tensor, labels_C: Tensor) -> Tensor:
    return -F.cross_entropy(F.linear(hidden_CD, weight_VD).float(), labels_C, ignore_index=IGNORE_INDEX, reduction="none")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes both gradients in the forward pass; backward multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, chunk: int) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        each_N = torch.empty(hidden_ND.shape[0], dtype=precise, device=hidden_ND.device)
        z_sum = torch.zeros((), dtype=precise, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        fill = torch.empty_like if hidden_ND.shape[0] else torch.zeros_like  # the first chunk fills it, when there is one
        grad_weight = fill(weight_VD, dtype=precise) if wants_weight else None
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            into = None if grad_hidden is None else grad_hidden[rows]
            each_N[rows], z = _one_chunk(hidden_ND[rows], weight_VD, labels_N[rows], z_loss, into, grad_weight, first=start == 0)
            z_sum += z
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(each_N)
        return each_N.sum() + z_sum, each_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]  # fp32: rounded to bf16 it would scale every gradient by the same error
        hidden = None if grad_hidden is None else _scaled(grad_hidden, scale)
        weight = None if grad_weight is None else _scaled(grad_weight, scale).to(ctx.weight_dtype)
        return hidden, weight, None, None, None


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """In place where the type allows it: one of them is as large as the head."""
    return grad.mul_(scale) if grad.dtype in (torch.float32, torch.float64) else (grad.float() * scale).to(grad.dtype)


def _one_chunk(
    hidden_CD: Tensor, weight_VD: Tensor, labels_C: Tensor, z_loss: float,
    grad_hidden: Tensor | None, grad_weight: Tensor | None, *, first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the chunk's cross-entropies and z-loss, and adds its gradients. A function of its own, so that its logits are gone before
    the next chunk's."""
    logits_CV = at_least_fp32(F.linear(hidden_CD, weight_VD))
    wants_gradient = grad_hidden is not None or grad_weight is not None
    loss_C, z, scores_CV = _loss_and_gradient(logits_CV, labels_C, z_loss, wants_gradient=wants_gradient)
    scores_CV = scores_CV.to(weight_VD.dtype)
    if grad_hidden is not None:
        torch.mm(scores_CV, weight_VD, out=grad_hidden)
    if grad_weight is not None:
        _accumulate(grad_weight, scores_CV, hidden_CD, first=first)
    return loss_C, z


def _loss_and_gradient(logits_CV: Tensor, labels_C: Tensor, z_loss: float, *, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns loss_C, the sum of their z-losses, and the gradient of both by the logits, in the logits' memory: a second tensor of C x V
    costs as much time as a GEMM of narrow models, and half the peak."""
    real_C = labels_C != IGNORE_INDEX
    safe_C1 = labels_C.where(real_C, 0)[:, None]
    top_C1 = logits_CV.amax(-1, keepdim=True)
    chosen_C1 = logits_CV.sub_(top_C1).gather(1, safe_C1)
    sum_C1 = logits_CV.exp_().sum(-1, keepdim=True)
    log_sum_C1 = sum_C1.log()
    lse_C1 = log_sum_C1 + top_C1
    loss_C = (log_sum_C1 - chosen_C1)[:, 0].where(real_C, 0)
    z = (z_loss * lse_C1.square())[:, 0].where(real_C, 0).sum()
    if wants_gradient:
        logits_CV.mul_(real_C[:, None] * (1 + 2 * z_loss * lse_C1) / sum_C1)
        logits_CV.scatter_add_(1, safe_C1, -real_C[:, None].to(logits_CV.dtype))
    return loss_C, z, logits_CV


def _accumulate(grad_weight: Tensor, scores_CV: Tensor, hidden_CD: Tensor, *, first: bool) -> None:
    if scores_CV.dtype != grad_weight.dtype:
        product = scores_CV.T @ hidden_CD
        grad_weight.copy_(product) if first else grad_weight.add_(product)
    elif first:
        torch.mm(scores_CV.T, hidden_CD, out=grad_weight)
    else:
        grad_weight.addmm_(scores_CV.T, hidden_CD)
