"""Adafactor over sharded weights (arXiv:1804.04235), by AXLearn's definition: `adafactor_optimizer` without momentum and without scaling
by the parameter's size (axlearn/common/optimizers.py, factorized_rms.py); t counts updates from 1, g is a parameter's gradient:

    beta = 1 - t ** -decay_rate
    two or more dims:  row = beta row + (1 - beta) mean(g^2 + eps, over c);  column = ... mean(g^2 + eps, over r)
                       u = g (row / mean(row, over r))^-1/2 column^-1/2
    else:              square = beta square + (1 - beta) (g^2 + eps);  u = g square^-1/2
    w = (1 - lr weight_decay) w - lr u / max(1, rms(u) / clipping_threshold)

r and c are the two largest dims, c the largest (the later one of equals): the paper's and optax's rule. AXLearn names the two for every
layer instead; they are the same for linears, embeddings and stacked experts (whose first dim has statistics of its own). rms is over the
whole parameter, which is AXLearn's block.

torch.optim.Adafactor fails on DTensors. Here all ranks add their parts of what a statistic needs: two all-reduces a step per group of
ranks, one with every parameter's sums along the sharded dim and one with the squares of every update, however many parameters there are.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from stagecoach.contract.plan import Optimizer as OptimizerPlan
from stagecoach_workloads.parallel.clip import local_part, shard_groups
from stagecoach_workloads.train.optimizers.groups import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter, where it is cut, and its statistics. `row` keeps dim r, `column` keeps dim c; both None: `square` is used."""

    parameter: nn.Parameter
    group: ParameterGroup
    cut: int | None  # the sharded dim
    ranks: dist.ProcessGroup | None  # that share the parameter
    row_dim: int = 0
    column_dim: int = 0
    row: Tensor | None = None
    column: Tensor | None = None
    square: Tensor | None = None


class Adafactor:
    """A row and a column a matrix, in the parameter's precision.

    A statistic that the cut dim was averaged out of is whole on every rank; one that keeps this dim is sharded like the parameter.
    Both have global shapes that know nothing of ranks, so a checkpoint of any number of ranks loads into any other.
    Gradients are used up.
    """

    def __init__(self, groups: Sequence[ParameterGroup], plan: OptimizerPlan) -> None:
        """Raises ValueError for a parameter that is sharded over more than one mesh axis."""
        self.groups = groups
        self._decay_rate, self._eps, self._threshold = plan.decay_rate, plan.eps, plan.clipping_threshold
        self._slots = {name: build_slot(parameter, group) for group in groups for name, parameter in group.parameters.items()}

    def update(self, steps_taken: int, lr_scale: float) -> None:
        """One update of every parameter that has a gradient (the same ones on all ranks)."""
        weight = (steps_taken + 1.0) ** -self._decay_rate  # 1 - beta
        slots = [slot for slot in self._slots.values() if slot.parameter.grad is not None]
        gradients = [_gradient(slot) for slot in slots]
        self._update_statistics(slots, gradients, weight)
        for slot, gradient in zip(slots, gradients, strict=True):
            scale_by_statistics(slot, gradient)
        squares = [update.square().sum().view(1) for update in gradients]
        sum_over_ranks([(slot.ranks, part) for slot, part in zip(slots, squares, strict=True)])
        for slot, update, square in zip(slots, gradients, squares, strict=True):
            rms = (square / max(1, slot.parameter.numel())).sqrt()
            lr = slot.group.peak_lr * lr_scale
            weights = local_part(slot.parameter)
            weights.mul_(1 - lr * slot.group.weight_decay)
            weights.sub_(update.mul_(lr / (rms / self._threshold).clamp(min=1.0)))

    def _update_statistics(self, slots: Sequence[Slot], gradients: Sequence[Tensor], weight: float) -> None:
        """Moves rows, columns and squares towards this step's by `weight`."""
        fresh: list[tuple[Tensor, Tensor]] = []  # statistic, its new value
        partial: list[tuple[dist.ProcessGroup | None, Tensor]] = []
        for slot, gradient in zip(slots, gradients, strict=True):
            squared = gradient.square().add_(self._eps)
            if slot.row is None or slot.column is None:
                assert slot.square is not None
                local_part(slot.square).lerp_(squared, weight)
                continue
            for statistic, averaged in ((slot.row, slot.column_dim), (slot.column, slot.row_dim)):
                mean = squared.sum(averaged).div_(slot.parameter.shape[averaged])
                fresh.append((local_part(statistic), mean))
                if averaged == slot.cut:
                    partial.append((slot.ranks, mean))
        sum_over_ranks(partial)
        for statistic, mean in fresh:
            statistic.lerp_(mean, weight)

    def state_tensors(self) -> dict[str, Tensor]:
        """`{parameter}:row` and `:column`, or `:square`."""
        return {
            f"{name}:{key}": tensor
            for name, slot in self._slots.items()
            for key, tensor in (("row", slot.row), ("column", slot.column), ("square", slot.square))
            if tensor is not None
        }


def build_slot(parameter: nn.Parameter, group: ParameterGroup) -> Slot:
    """The parameter's statistics, zero."""
    ranks = shard_groups(parameter)
    if len(ranks) > 1:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is sharded over {len(ranks)} mesh axes; Adafactor knows one")
    cut = cut_dim(parameter)
    whole = Slot(parameter=parameter, group=group, cut=cut, ranks=ranks[0] if ranks else None)
    if parameter.ndim < 2:
        return replace(whole, square=torch.zeros_like(parameter, requires_grad=False))
    row_dim, column_dim = factored_dims(tuple(parameter.shape))
    row, column = _zeros_without(parameter, column_dim, cut), _zeros_without(parameter, row_dim, cut)
    return replace(whole, row_dim=row_dim, column_dim=column_dim, row=row, column=column)


def factored_dims(shape: tuple[int, ...]) -> tuple[int, int]:
    """(r, c): the second largest and the largest dim; of equals the later one is the larger."""
    by_size = sorted(range(len(shape)), key=lambda dim: shape[dim])
    return by_size[-2], by_size[-1]


def cut_dim(tensor: Tensor) -> int | None:
    """The dim along which a DTensor is sharded."""
    if not isinstance(tensor, DTensor):
        return None
    cuts = [placement.dim % tensor.ndim for placement in tensor.placements if isinstance(placement, Shard)]
    return cuts[0] if cuts else None


def scale_by_statistics(slot: Slot, gradient: Tensor) -> None:
    """Makes the gradient the update u, in place. Nothing is asked of other ranks."""
    if slot.row is None or slot.column is None:
        assert slot.square is not None
        gradient.mul_(local_part(slot.square).rsqrt())
        return
    row = local_part(slot.row).unsqueeze(slot.column_dim)
    column = local_part(slot.column).unsqueeze(slot.row_dim)
    # The mean over both dims follows from either statistic; taken from the one that this rank holds whole.
    usual = column.mean(slot.column_dim, keepdim=True) if slot.cut == slot.row_dim else row.mean(slot.row_dim, keepdim=True)
    gradient.mul_((row / usual).rsqrt_()).mul_(column.rsqrt())


def sum_over_ranks(parts: Sequence[tuple[dist.ProcessGroup | None, Tensor]]) -> None:
    """Sums each tensor over its group, in place: one all-reduce per group and type. None: the rank's own is all there is."""
    buckets: defaultdict[tuple[dist.ProcessGroup, torch.dtype], list[Tensor]] = defaultdict(list)
    for ranks, tensor in parts:
        if ranks is not None and ranks.size() > 1:
            buckets[ranks, tensor.dtype].append(tensor)
    for (ranks, _), tensors in buckets.items():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=ranks)
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def _gradient(slot: Slot) -> Tensor:
    assert slot.parameter.grad is not None
    return local_part(slot.parameter.grad).to(slot.parameter.dtype)


def _zeros_without(parameter: nn.Parameter, dim: int, cut: int | None) -> Tensor:
    """Zeros of the parameter's shape less `dim`: sharded as the parameter is when the cut dim stays, else whole."""
    shape = [size for place, size in enumerate(parameter.shape) if place != dim]
    if not isinstance(parameter, DTensor) or cut is None or cut == dim:
        return torch.zeros(shape, dtype=parameter.dtype, device=local_part(parameter).device)
    own = [size for place, size in enumerate(parameter._local_tensor.shape) if place != dim]
    local = torch.zeros(own, dtype=parameter.dtype, device=parameter._local_tensor.device)
    kept = cut - (cut > dim)
    placements = [Shard(kept) if isinstance(placement, Shard) else placement for placement in parameter.placements]
    whole = torch.empty(shape, device="meta")
    return DTensor.from_local(local, parameter.device_mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
