"""Muon over sharded weights (Keller Jordan, 2024), at the rates of AdamW (Moonlight, arXiv:2502.16982): torch.optim.Muon's definition.
g is a matrix's gradient, A x B its shape, mu the plan's beta1:

    momentum = mu momentum + (1 - mu) g
    u = orthogonal((1 - mu) g + mu momentum)           five Newton-Schulz steps, in bf16; on CPU in the precision of the weights
    w = (1 - lr weight_decay) w - lr 0.2 sqrt(max(A, B)) u

It is for the matrices between layers, and for stacked experts one by one. All else is AdamW's (`stagecoach.costs.parameters` says which).

An update is of a whole matrix, and a rank holds a part: the ranks that share a matrix send their parts of u to one of them, each to another
one in turn, and get back what is theirs. So every matrix is orthogonalized once, by the same arithmetic as on one rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagecoach.contract.plan import Optimizer as OptimizerPlan
from stagecoach.costs.parameters import is_between_layers
from stagecoach_workloads.models.build import part_of
from stagecoach_workloads.parallel.clip import local_part, shard_groups
from stagecoach_workloads.train.optimizers.adafactor import cut_dim
from stagecoach_workloads.train.optimizers.groups import ParameterGroup

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a x + b x^3 + c x^5
STEPS = 5
EPS = 1e-7
RMS = 0.2  # of an update of AdamW, as it is in practice
LEAST_AT_ONCE = 16  # matrices under way, and at least one for each rank: memory for a copy of all would be as much as the weights take


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter, where it is cut, who shares it, and its momentum."""

    parameter: nn.Parameter
    group: ParameterGroup
    cut: int | None  # the sharded dim, where matrices are cut; None: every matrix is whole on some rank
    ranks: dist.ProcessGroup | None  # that share a matrix
    momentum: Tensor


class Muon:
    """One moment a parameter, in the parameter's type and placement."""

    def __init__(self, groups: Sequence[ParameterGroup], plan: OptimizerPlan, *, compute: torch.dtype | None = None) -> None:
        """`compute`: of the orthogonalization; None: bf16 on a GPU, the weights' own on a CPU, where bf16 is slower. Raises ValueError for
        a parameter that is sharded over more than one mesh axis."""
        self.groups = groups
        self._beta, self._compute = plan.beta1, compute
        self._slots = {name: build_slot(parameter, group) for group in groups for name, parameter in group.parameters.items()}

    def update(self, steps_taken: int, lr_scale: float) -> None:
        """One update of every parameter that has a gradient (the same ones on all ranks)."""
        slots = [slot for slot in self._slots.values() if slot.parameter.grad is not None]
        at_once = max([LEAST_AT_ONCE, *(slot.ranks.size() for slot in slots if slot.ranks is not None)])
        for first in range(0, len(slots), at_once):
            part = slots[first : first + at_once]
            for slot, update in zip(part, orthogonal_over_ranks(part, [self._moved(slot) for slot in part], self._compute), strict=True):
                lr, weights = slot.group.peak_lr * lr_scale, local_part(slot.parameter.detach())
                weights.mul_(1 - lr * slot.group.weight_decay)
                weights.sub_(update.to(weights.dtype), alpha=lr * RMS * math.sqrt(max(slot.parameter.shape[-2:])))

    def _moved(self, slot: Slot) -> Tensor:
        """Moves the momentum; returns Nesterov's look ahead, this rank's part."""
        assert slot.parameter.grad is not None
        gradient, momentum = local_part(slot.parameter.grad).to(slot.parameter.dtype), local_part(slot.momentum)
        momentum.lerp_(gradient, 1 - self._beta)
        return gradient.lerp(momentum, self._beta)

    def state_tensors(self) -> dict[str, Tensor]:
        """`{parameter}:momentum`."""
        return {f"{name}:momentum": slot.momentum for name, slot in self._slots.items()}


def split_groups(groups: Sequence[ParameterGroup]) -> tuple[list[ParameterGroup], list[ParameterGroup]]:
    """(Muon's, AdamW's): what is empty is left out."""
    mine, others = [], []
    for group in groups:
        here = {name: value for name, value in group.parameters.items() if is_between_layers(part_of(name), name, value.ndim)}
        mine.append(replace(group, parameters=here))
        others.append(replace(group, parameters={name: value for name, value in group.parameters.items() if name not in here}))
    return [group for group in mine if group.parameters], [group for group in others if group.parameters]


def build_slot(parameter: nn.Parameter, group: ParameterGroup) -> Slot:
    """The parameter's momentum, zero."""
    ranks = shard_groups(parameter)
    if len(ranks) > 1:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is sharded over {len(ranks)} mesh axes; Muon knows one")
    cut = cut_dim(parameter)
    is_whole = cut is None or cut < parameter.ndim - 2 or ranks[0].size() == 1
    momentum = torch.zeros_like(parameter, requires_grad=False)
    return Slot(parameter=parameter, group=group, cut=None if is_whole else cut, ranks=None if is_whole else ranks[0], momentum=momentum)


def orthogonal_over_ranks(slots: Sequence[Slot], updates: Sequence[Tensor], compute: torch.dtype | None = None) -> list[Tensor]:
    """Each update's part of the orthogonal whole. Matrices that are cut visit their owner; three rounds, so that owners work at once."""
    owners = [place % slot.ranks.size() if slot.ranks is not None else 0 for place, slot in enumerate(slots)]
    whole = [gather(slot, update, owner) for slot, update, owner in zip(slots, updates, owners, strict=True)]
    whole = [None if matrix is None else orthogonal(matrix, compute) for matrix in whole]
    return [scatter(slot, matrix, update, owner) for slot, matrix, update, owner in zip(slots, whole, updates, owners, strict=True)]


def orthogonal(update: Tensor, compute: torch.dtype | None = None) -> Tensor:
    """The orthogonal factor of each matrix (its last two dims), nearly: singular values end between 0.7 and 1.2."""
    if not update.numel():
        return update
    compute = compute or (torch.bfloat16 if update.device.type == "cuda" else update.dtype)
    matrices = [_newton_schulz(matrix) for matrix in update.reshape(-1, *update.shape[-2:]).to(compute)]
    return torch.stack(matrices).view(update.shape)


def _newton_schulz(matrix: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=EPS)  # singular values of at most 1
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


# --- from ranks to one of them and back ----------------------------------------------------------------------------------------


def gather(slot: Slot, update: Tensor, owner: int) -> Tensor | None:
    """The whole update on its owner, None on the others; the rank's own where nothing is cut."""
    if slot.ranks is None or slot.cut is None:
        return update
    part = padded(slot, update)
    is_owner = slot.ranks.rank() == owner
    parts = [torch.empty_like(part) for _ in range(slot.ranks.size())] if is_owner else None
    dist.gather(part, parts, dst=dist.get_global_rank(slot.ranks, owner), group=slot.ranks)
    return torch.cat(parts, slot.cut).narrow(slot.cut, 0, slot.parameter.shape[slot.cut]) if parts is not None else None


def scatter(slot: Slot, whole: Tensor | None, update: Tensor, owner: int) -> Tensor:
    """This rank's part of what its owner made."""
    if slot.ranks is None or slot.cut is None:
        assert whole is not None
        return whole
    part, parts = padded(slot, update), None
    if whole is not None:
        room = part.shape[slot.cut] * slot.ranks.size() - whole.shape[slot.cut]
        filled = torch.cat([whole.to(part.dtype), _zeros_like_rows(whole, slot.cut, room, part.dtype)], slot.cut)
        parts = [each.contiguous() for each in torch.split(filled, part.shape[slot.cut], slot.cut)]
    dist.scatter(part, parts, src=dist.get_global_rank(slot.ranks, owner), group=slot.ranks)
    return part.narrow(slot.cut, 0, update.shape[slot.cut])


def padded(slot: Slot, update: Tensor) -> Tensor:
    """As many rows on each rank: torch cuts evenly but for the last ranks, which have fewer or none."""
    assert slot.ranks is not None
    assert slot.cut is not None
    rows = -(-slot.parameter.shape[slot.cut] // slot.ranks.size())
    return torch.cat([update, _zeros_like_rows(update, slot.cut, rows - update.shape[slot.cut], update.dtype)], slot.cut).contiguous()


def _zeros_like_rows(tensor: Tensor, dim: int, rows: int, dtype: torch.dtype) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = rows
    return torch.zeros(shape, dtype=dtype, device=tensor.device)
