"""Average pooling. N images, P patches, V vision width, T = Q x Q tokens, D model width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach_workloads.models.connectors.c_abstractor import square_side


class AveragePool(nn.Module):
    """Averages the patch grid to Q x Q, then projects: MM1's simplest connector (arXiv:2403.09611 section 3.2)."""

    def __init__(self, *, vision_dim: int, model_dim: int, tokens: int) -> None:
        super().__init__()
        self.queries = square_side(tokens, "average_pool")
        self.readout = nn.Linear(vision_dim, model_dim)

    def forward(self, patches: Sequence[Tensor], grids: Sequence[tuple[int, int]], seen: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens_NTD."""
        del seen
        maps = [x_NPV.transpose(1, 2).reshape(*x_NPV.shape[::2], *grid) for x_NPV, grid in zip(patches, grids, strict=True)]
        pooled = torch.cat([F.adaptive_avg_pool2d(map_NVRC, self.queries) for map_NVRC in maps])
        return self.readout(pooled.flatten(2).transpose(1, 2))
