"""AdamW with decoupled decay (arXiv:1711.05101), by torch's own kernel, fused where it exists."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from stagecoach.contract.plan import Optimizer as OptimizerPlan
from stagecoach_workloads.parallel.clip import local_part
from stagecoach_workloads.train.optimizers.groups import ParameterGroup

FUSED_ON = ("cpu", "cuda")  # bit-equal for any number of threads and any cut of the weights (tests/unit/optim)


class AdamW:
    """Two moments a parameter, in the parameter's type and placement.

    The weights lose peak_lr x weight_decay x schedule of themselves per step (torch's convention; MM1's lambda = 0.1 eta is 0.1 here).
    Every value is moved by itself, so a rank works on its own shards as plain tensors: DTensor's dispatch costs time and would not
    have sharded and whole parameters in one call.
    """

    def __init__(self, groups: Sequence[ParameterGroup], plan: OptimizerPlan) -> None:
        self.groups = groups
        self._beta1, self._beta2, self._eps = plan.beta1, plan.beta2, plan.eps
        self._moments: dict[str, tuple[Tensor, Tensor]] = {
            name: (torch.zeros_like(parameter, requires_grad=False), torch.zeros_like(parameter, requires_grad=False))
            for group in groups
            for name, parameter in group.parameters.items()
        }

    def update(self, steps_taken: int, lr_scale: float) -> None:
        """One step of every parameter that has a gradient."""
        for group in self.groups:
            parameters, gradients, first, second = [], [], [], []
            for name, parameter in group.parameters.items():
                if parameter.grad is None or not local_part(parameter).numel():  # a shard may be empty
                    continue
                parameters.append(local_part(parameter.detach()))
                gradients.append(local_part(parameter.grad).to(parameter.dtype))
                first.append(local_part(self._moments[name][0]))
                second.append(local_part(self._moments[name][1]))
            if not parameters:
                continue
            fused = all(tensor.device.type in FUSED_ON for tensor in parameters)
            adamw(
                parameters, gradients, first, second, [], counts(parameters, steps_taken, fused=fused),
                fused=fused, foreach=not fused, amsgrad=False, maximize=False,
                beta1=self._beta1, beta2=self._beta2, lr=group.peak_lr * lr_scale, weight_decay=group.weight_decay, eps=self._eps,
            )  # fmt: skip

    def state_tensors(self) -> dict[str, Tensor]:
        """`{parameter}:exp_avg` and `{parameter}:exp_avg_sq`."""
        keys = ("exp_avg", "exp_avg_sq")
        return {f"{name}:{key}": tensor for name, pair in self._moments.items() for key, tensor in zip(keys, pair, strict=True)}


def counts(parameters: Sequence[Tensor], steps_taken: int, *, fused: bool) -> list[Tensor]:
    """The updates so far as torch wants them: a tensor a parameter, which it adds one to. Ours is the one number that is kept."""
    return [torch.full((), float(steps_taken), device=tensor.device if fused else "cpu") for tensor in parameters]
