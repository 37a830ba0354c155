"""Honeybee's C-Abstractor. N images, P patches of an R x C grid, V vision width, W hidden width, T = Q x Q queries, D model width.

C-Abstractor: arXiv:2312.06742, over RegNet stages (arXiv:2003.13678) as timm builds them: bottleneck ratio 1, depthwise 3 x 3,
squeeze-and-excite to a quarter of the block's input, SiLU, LayerNorm over channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.errors import ConfigError
from stagecoach_workloads.models.vit import interpolate_positions

NORM_EPS = 1e-5  # of timm's norm-and-activation layer


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW map."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Scales channels by a gate of their means (arXiv:1709.01507)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, map_NWRC: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        gate_NW = self.excite(F.silu(self.squeeze(map_NWRC.mean((2, 3))))).sigmoid()
        return map_NWRC * gate_NW[:, :, None, None]


class Bottleneck(nn.Module):
    """1 x 1, depthwise 3 x 3, squeeze-and-excite, 1 x 1, and the input added back (through a 1 x 1 where the width changes)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width_in, width, 1, bias=False), ChannelNorm(width, eps=NORM_EPS)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), ChannelNorm(width, eps=NORM_EPS)
        self.squeeze_excite = SqueezeExcite(width, round(width_in * 0.25))
        self.conv3, self.norm3 = nn.Conv2d(width, width, 1, bias=False), ChannelNorm(width, eps=NORM_EPS)
        changes = width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, bias=False) if changes else None
        self.shortcut_norm = ChannelNorm(width, eps=NORM_EPS) if changes else None

    def forward(self, map_NVRC: Tensor) -> Tensor:
        """Returns map_NWRC."""
        x = F.silu(self.norm1(self.conv1(map_NVRC)))
        x = self.squeeze_excite(F.silu(self.norm2(self.conv2(x))))
        x = self.norm3(self.conv3(x))
        kept = map_NVRC if self.shortcut is None or self.shortcut_norm is None else self.shortcut_norm(self.shortcut(map_NVRC))
        return F.silu(x + kept)


class CAbstractor(nn.Module):
    """RegNet stage over the patch grid, adaptive average pooling to Q x Q, RegNet stage, two-layer read-out.

    Learned positions are added to the patches first; at another grid than the trained one they are interpolated as the encoder's are.
    Raises ConfigError when `tokens` is no square number.
    """

    def __init__(self, *, side: int, vision_dim: int, hidden: int, model_dim: int, tokens: int, depth: int) -> None:
        super().__init__()
        self.side, self.queries = side, square_side(tokens, "c_abstractor")
        self.position = nn.Parameter(torch.empty(1, side**2, vision_dim))
        self.before = nn.Sequential(*(Bottleneck(vision_dim if block == 0 else hidden, hidden) for block in range(depth)))
        self.after = nn.Sequential(*(Bottleneck(hidden, hidden) for _ in range(depth)))
        self.readout = nn.Sequential(nn.Linear(hidden, model_dim), nn.SiLU(), nn.Linear(model_dim, model_dim))

    def forward(self, patches: Sequence[Tensor], grids: Sequence[tuple[int, int]], seen: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens_NTD. Padding patches are seen like any other: the convolution needs a full map."""
        del seen
        maps = [self.pool(self.before(self.to_map(x_NPV, grid))) for x_NPV, grid in zip(patches, grids, strict=True)]
        return self.readout(self.after(torch.cat(maps)).flatten(2).transpose(1, 2))

    def to_map(self, patches_NPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Adds positions and unfolds into map_NVRC."""
        position_PV = interpolate_positions(self.position[0], self.side, *grid)
        return (patches_NPV + position_PV).transpose(1, 2).reshape(*patches_NPV.shape[::2], *grid)

    def pool(self, map_NWRC: Tensor) -> Tensor:
        """Averages to Q x Q, whatever the grid."""
        return F.adaptive_avg_pool2d(map_NWRC, self.queries)


def square_side(tokens: int, kind: str) -> int:
    """Q for Q x Q = tokens. Raises ConfigError when there is none."""
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ConfigError(f"connector.tokens={tokens} is no square number, which {kind} needs; use {side**2} or {(side + 1) ** 2}")
    return side
