"""The global norm of gradients that lie on many ranks, and clipping by it."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients so that their global 2-norm is at most `max_norm`; returns the norm before that, a scalar on the device.

    A DTensor's squares are summed over the mesh axes that shard it, one all-reduce per set of axes however many parameters there are;
    what is replicated (HSDP's replicas, plain tensors) counts once. Parameters without a gradient are left out, and the same ones on
    every rank. Nothing waits for the device. A NaN or an infinity anywhere makes the returned norm so on every rank, and gradients
    are then worthless: the guard refuses such a step. Raises ValueError for a gradient that was not reduced yet.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = global_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # 1e-6 as torch's own: no division by nothing
    for locals_of_kind in _by_kind(local_part(gradient) for gradient in gradients):
        torch._foreach_mul_(locals_of_kind, scale.to(locals_of_kind[0].device))
    return norm


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all values of all tensors together, in their precision (at least fp32)."""
    by_axes: defaultdict[tuple[dist.ProcessGroup, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_axes[shard_groups(tensor)].append(local_part(tensor))
    total: Tensor | None = None
    for groups, parts in by_axes.items():
        squares = _sum_of_squares(parts)
        for group in groups:
            dist.all_reduce(squares, group=group)
        total = squares if total is None else total + squares.to(total.device)
    if total is None:
        return torch.zeros(())
    precise = any(part.dtype == torch.float64 for parts in by_axes.values() for part in parts)
    return total.sqrt().to(torch.float64 if precise else torch.float32)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's values: the shard of a DTensor (may be empty), else the tensor itself. Shares memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def shard_groups(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups of ranks over which a DTensor's values are spread, one a sharding mesh axis; none for what every rank holds whole.

    Raises ValueError for values still to be summed over ranks.
    """
    if not isinstance(tensor, DTensor):
        return ()
    if any(isinstance(placement, Partial) for placement in tensor.placements):
        raise ValueError(f"a gradient of shape {tuple(tensor.shape)} is not summed over ranks yet: placements {tensor.placements}")
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(axis) for axis, placement in enumerate(tensor.placements) if isinstance(placement, Shard))


def _sum_of_squares(parts: list[Tensor]) -> Tensor:
    """fp64 scalar: what is summed over ranks and parameters must not depend on how they were cut, beyond rounding of each part."""
    norms = [norm for kind in _by_kind(parts) for norm in torch._foreach_norm(kind, 2, dtype=_at_least_fp32(kind[0].dtype))]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=parts[0].device)
    return torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).square().sum()


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Lists of one device and type, as the fused list operations want them; empty shards are left out."""
    kinds: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel():
            kinds[tensor.device, tensor.dtype].append(tensor)
    return list(kinds.values())
