"""RMSNorm (arXiv:1910.07467). N rows (all leading dimensions), D model width."""

from typing import Any

import torch
from torch import Tensor, nn


class RmsNorm(nn.RMSNorm):
    """`nn.RMSNorm`, with a backward of a few passes where torch has no fused kernel: training uncompiled on the CPU.

    There, torch runs nine small operators and their gradients; the numbers are the same to fp32 rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns x / sqrt(mean(x ** 2) + eps) * weight, the mean over the last dimension; of x's shape."""
        weight = self.weight
        plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and self.eps is not None
        if plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _RmsNorm.apply(x, weight, self.eps)  # type: ignore[no-untyped-call]
        return super().forward(x)


class _RmsNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x ** 2) + eps) ** -0.5, so dx = g w r - x r ** 3 mean(g w x) and dw = sum over rows of g x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        products_ND = (grads[0] * x).flatten(0, -2)
        grad_weight = products_ND.T @ inverse.flatten() if wants_weight else None
        if not wants_x:
            return None, grad_weight, None
        along = (products_ND @ weight_D).view_as(inverse).mul_(inverse**3)
        grad_x = (grads[0] * weight_D).mul_(inverse).addcmul_(x, along, value=-1 / x.shape[-1])
        return grad_x, grad_weight, None
