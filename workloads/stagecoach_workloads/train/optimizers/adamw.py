"""AdamW with decoupled decay (arXiv:1711.05101), by torch's own, fused where it exists."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagecoach.contract.plan import Optimizer as OptimizerPlan
from stagecoach_workloads.train.optimizers.groups import ParameterGroup

FUSED_ON = ("cpu", "cuda")  # bit-equal for any number of threads and any cut of the weights (tests/unit/optim)


class AdamW:
    """Two moments a parameter, in the parameter's type and placement.

    The weights lose peak_lr x weight_decay x schedule of themselves per step (torch's convention; MM1's lambda = 0.1 eta is 0.1 here).
    """

    def __init__(self, groups: Sequence[ParameterGroup], plan: OptimizerPlan) -> None:
        self.groups = groups
        fused = all(p.device.type in FUSED_ON for group in groups for p in group.parameters.values())
        self._torch = torch.optim.AdamW(
            [{"params": list(g.parameters.values()), "lr": g.peak_lr, "weight_decay": g.weight_decay} for g in groups],
            betas=(plan.beta1, plan.beta2),
            eps=plan.eps,
            fused=fused or None,
        )
        self._counts: list[Tensor] = []  # torch keeps one a parameter; ours is the one that counts
        for group in groups:
            for parameter in group.parameters.values():
                count = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
                self._counts.append(count)
                self._torch.state[parameter] = {
                    "step": count,
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }

    def update(self, steps_taken: int, lr_scale: float) -> None:
        """One step of torch's AdamW."""
        torch._foreach_zero_(self._counts)
        torch._foreach_add_(self._counts, float(steps_taken))
        for group, inner in zip(self.groups, self._torch.param_groups, strict=True):
            inner["lr"] = group.peak_lr * lr_scale
        self._torch.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """`{parameter}:exp_avg` and `{parameter}:exp_avg_sq`."""
        return {
            f"{name}:{key}": self._torch.state[parameter][key]
            for group in self.groups
            for name, parameter in group.parameters.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
