"""Low-rank adapters (LoRA, arXiv:2106.09685), which BLIP-3's preference and safety stages train. R rank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.contract.plan import Lora
from stagecoach.errors import ConfigError


class LoraLinear(nn.Linear):
    """A linear with an adapter: W x + alpha / rank * B (A x). `weight` and `bias` keep their names, so checkpoints without adapters fit."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, rank))
        self.scale = alpha / rank
        self._unmerged: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Returns the adapted output; the plain one once merged."""
        out = F.linear(input, self.weight, self.bias)
        if self._unmerged is not None:
            return out
        return out + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> None:
        """Folds the adapter into the weight, and keeps the weight it had: subtracting again would not give it back to the bit."""
        if self._unmerged is None:
            self._unmerged = self.weight.detach().clone()
            self.weight.add_((self.scale * (self.lora_b.float() @ self.lora_a.float())).to(self.weight.dtype))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Gives back the weight from before `merge`."""
        if self._unmerged is not None:
            self.weight.copy_(self._unmerged)
            self._unmerged = None


def add_lora(decoder: nn.Module, plan: Lora) -> None:
    """Puts adapters on the decoder's linears that `plan.targets` names, in every layer; experts have none.

    Raises ConfigError when a target is in no layer.
    """
    found: set[str] = set()
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if name in plan.targets and type(child) is nn.Linear:
                setattr(parent, name, LoraLinear(child, rank=plan.rank, alpha=plan.alpha))
                found.add(name)
    if missing := [target for target in plan.targets if target not in found]:
        raise ConfigError(
            f"model.lora.targets names {', '.join(missing)}, and no layer has such a linear (experts have no adapters); use q, k, v, o"
        )


def merge_lora(module: nn.Module) -> None:
    """Merges every adapter: for export and for generating at full speed."""
    for child in module.modules():
        if isinstance(child, LoraLinear):
            child.merge()


def unmerge_lora(module: nn.Module) -> None:
    """Undoes `merge_lora`, exactly."""
    for child in module.modules():
        if isinstance(child, LoraLinear):
            child.unmerge()
