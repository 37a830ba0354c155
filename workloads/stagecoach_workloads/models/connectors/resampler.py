"""Learned queries over patches. N images, P patches, V vision width, T queries (latents), H heads, K head width, D model width.

The perceiver resampler of Flamingo (arXiv:2204.14198) as open_flamingo writes it and BLIP-3 uses it (arXiv:2408.08872); and MM1's
attention pooling (arXiv:2403.09611), which is one such layer whose keys are the patches alone.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach_workloads.models.attention import attend_all


class ResamplerLayer(nn.Module):
    """Latents attend to patches (and to themselves, when `self_keys`), then a feed-forward; both on normed copies and added back."""

    def __init__(self, *, width: int, heads: int, head_dim: int, mlp_ratio: int, self_keys: bool) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.self_keys = heads, self_keys
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.norm_ffn = nn.LayerNorm(width)
        self.up = nn.Linear(width, mlp_ratio * width, bias=False)
        self.down = nn.Linear(mlp_ratio * width, width, bias=False)

    def forward(self, latents: list[Tensor], patches: Sequence[Tensor], seen: Sequence[Tensor | None]) -> list[Tensor]:
        """Takes and returns latents_NTV per image size."""
        return [self._one(*group) for group in zip(latents, patches, seen, strict=True)]

    def _one(self, latents_NTV: Tensor, patches_NPV: Tensor, seen_NP: Tensor | None) -> Tensor:
        queries_NTV, keys_NSV = self.norm_latents(latents_NTV), self.norm_media(patches_NPV)
        if self.self_keys:
            keys_NSV = torch.cat((keys_NSV, queries_NTV), dim=1)
            seen_NP = None if seen_NP is None else F.pad(seen_NP, (0, queries_NTV.shape[1]), value=True)
        k, v = self.kv(keys_NSV).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (self.q(queries_NTV), k, v))
        latents_NTV = latents_NTV + self.o(attend_all(q, k, v, seen_NP).flatten(2))
        return latents_NTV + self.down(F.gelu(self.up(self.norm_ffn(latents_NTV))))


class Resampler(nn.Module):
    """T learned latents refined over `depth` layers, normed and projected. Works on any grid; padding patches are hidden by `seen`."""

    def __init__(
        self, *, kind: Literal["perceiver", "attention_pool"], vision_dim: int, model_dim: int, tokens: int, depth: int,
        heads: int, head_dim: int, mlp_ratio: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latents = nn.Parameter(torch.empty(tokens, vision_dim))
        layer = {"width": vision_dim, "heads": heads, "head_dim": head_dim, "mlp_ratio": mlp_ratio}
        count, self_keys = (depth, True) if kind == "perceiver" else (1, False)
        self.layers = nn.ModuleList(ResamplerLayer(**layer, self_keys=self_keys) for _ in range(count))
        self.norm = nn.LayerNorm(vision_dim)
        self.readout = nn.Linear(vision_dim, model_dim)

    def forward(self, patches: Sequence[Tensor], grids: Sequence[tuple[int, int]], seen: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens_NTD."""
        del grids
        return self.readout(self.resample(patches, seen))

    def resample(self, patches: Sequence[Tensor], seen: Sequence[Tensor | None]) -> Tensor:
        """Returns tokens_NTV, before the projection."""
        latents = [self.latents.to(x_NPV.dtype).expand(x_NPV.shape[0], -1, -1) for x_NPV in patches]
        seen = [None if mask is None else keep_one(mask) for mask in seen]
        for layer in self.layers:
            latents = layer(latents, patches, seen)
        return self.norm(torch.cat(latents))


def keep_one(seen_NP: Tensor) -> Tensor:
    """Shows all patches of an image that has none: attention over nothing would be NaN."""
    return seen_NP | ~seen_NP.any(-1, keepdim=True)
