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


class TokenLoss(NamedTuple):
    """Sums over target tokens. Divide by the global count of targets, once."""

    loss_sum: Tensor  # fp32 scalar: cross-entropy and z-loss
    num_targets: Tensor  # int64 scalar


def chunked_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, z_loss: float = 0.0, chunk: int = CHUNK) -> TokenLoss:
    """Cross-entropy of `hidden_ND @ weight_VD.T` summed over labels that are not IGNORE_INDEX, plus z_loss * sum of logsumexp ** 2.

    A label is what its own position must predict: the shift by one was made where documents' ends are known, in the data.
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        compute = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(compute), weight_VD.to(compute)
    loss_sum: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, z_loss, chunk)  # type: ignore[no-untyped-call]
    return TokenLoss(loss_sum, (labels_N != IGNORE_INDEX).sum())


def chunked_log_probs(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Returns log_probs_N (fp32) of the labels, 0 where ignored; gradients recompute a chunk's logits. For preference losses and scores."""
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
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, chunk: int) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            into = None if grad_hidden is None else grad_hidden[rows]
            total += _one_chunk(hidden_ND[rows], weight_VD, labels_N[rows], z_loss, into, grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]  # fp32: rounded to bf16 it would scale every gradient by the same error
        hidden = None if grad_hidden is None else (grad_hidden.float() * scale).to(grad_hidden.dtype)
        weight = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        return hidden, weight, None, None, None


def _one_chunk(
    hidden_CD: Tensor, weight_VD: Tensor, labels_C: Tensor, z_loss: float, grad_hidden: Tensor | None, grad_weight: Tensor | None
) -> Tensor:
    """Returns the chunk's loss and adds its gradients. A function of its own, so that its logits are gone before the next chunk's."""
    logits_CV = F.linear(hidden_CD, weight_VD).float()
    wants_gradient = grad_hidden is not None or grad_weight is not None
    loss, scores_CV = _loss_and_gradient(logits_CV, labels_C, z_loss, wants_gradient=wants_gradient)
    scores_CV = scores_CV.to(weight_VD.dtype)
    if grad_hidden is not None:
        grad_hidden.copy_(scores_CV @ weight_VD)
    if grad_weight is not None:
        _accumulate(grad_weight, scores_CV, hidden_CD)
    return loss


def _loss_and_gradient(logits_CV: Tensor, labels_C: Tensor, z_loss: float, *, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Returns the chunk's summed loss and its gradient by the logits, in the memory of their log-probabilities: few passes over C x V,
    each of which costs as much as a GEMM of narrow models."""
    real_C = labels_C != IGNORE_INDEX
    safe_C1 = labels_C.where(real_C, 0)[:, None]
    scores_CV = logits_CV.log_softmax(-1)
    chosen_C = scores_CV.gather(1, safe_C1)[:, 0]
    lse_C = logits_CV.gather(1, safe_C1)[:, 0] - chosen_C
    loss = (z_loss * lse_C.square() - chosen_C).where(real_C, 0).sum()
    if wants_gradient:
        scale_C1 = (real_C * (1 + 2 * z_loss * lse_C))[:, None]
        scores_CV.exp_().mul_(scale_C1)
        scores_CV.scatter_add_(1, safe_C1, -real_C[:, None].to(scores_CV.dtype))
    return loss, scores_CV


def _accumulate(grad_weight: Tensor, scores_CV: Tensor, hidden_CD: Tensor) -> None:
    if scores_CV.dtype == grad_weight.dtype:
        grad_weight.addmm_(scores_CV.T, hidden_CD)
    else:
        grad_weight += scores_CV.T @ hidden_CD
