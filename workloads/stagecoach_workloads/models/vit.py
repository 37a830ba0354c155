"""Vision transformers. N images, P patches (raster order), V width, H heads, K head width.

Two layouts: `clip` (arXiv:2103.00020: class token, norm before the first block, QuickGELU) and `siglip` (arXiv:2303.15343: neither,
tanh GELU, a norm after the last block). Images of several sizes run together: a block takes a list, one tensor per size, so that it
is entered once per step on every rank, whatever a rank's images are (FSDP gathers a block's weights when it is entered).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.contract.plan import Encoder as EncoderPlan
from stagecoach.errors import ConfigError, DataError
from stagecoach_workloads.models.attention import attend_all


class EncoderAttention(nn.Module):
    """Multi-head self-attention over all patches of an image."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.heads = plan.heads
        self.q, self.k, self.v, self.o = (nn.Linear(plan.width, plan.width) for _ in range(4))

    def forward(self, x_NPV: Tensor) -> Tensor:
        """Returns out_NPV."""
        q, k, v = (project(x_NPV).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        return self.o(attend_all(q, k, v).flatten(2))


class EncoderMlp(nn.Module):
    """Two linears around the layout's GELU."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.layout = plan.layout
        self.up = nn.Linear(plan.width, plan.mlp_width)
        self.down = nn.Linear(plan.mlp_width, plan.width)

    def forward(self, x_NPV: Tensor) -> Tensor:
        """Returns out_NPV."""
        up = self.up(x_NPV)
        return self.down(up * torch.sigmoid(1.702 * up) if self.layout == "clip" else F.gelu(up, approximate="tanh"))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, over a list of image groups."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(plan.width, eps=plan.norm_eps)
        self.attention = EncoderAttention(plan)
        self.mlp_norm = nn.LayerNorm(plan.width, eps=plan.norm_eps)
        self.mlp = EncoderMlp(plan)

    def forward(self, groups: list[Tensor]) -> list[Tensor]:
        """Takes and returns one x_NPV per image size."""
        return [self._one(x_NPV) for x_NPV in groups]

    def _one(self, x_NPV: Tensor) -> Tensor:
        x_NPV = x_NPV + self.attention(self.attention_norm(x_NPV))
        return x_NPV + self.mlp(self.mlp_norm(x_NPV))


class VisionEncoder(nn.Module):
    """Patches of the chosen layer. Layers after it are not built, and neither is what only a pooled output needs.

    `feature_layer` counts as hidden states do: 0 is the embeddings, -1 the last layer. SigLIP's last norm belongs to the last layer only.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        check_encoder(plan)
        self.plan = plan
        self.patch = nn.Conv2d(3, plan.width, plan.patch_size, stride=plan.patch_size, bias=plan.layout == "siglip")
        self.side = plan.image_size // plan.patch_size  # patches a side that the position embedding was trained at
        has_class = plan.layout == "clip"
        self.class_embedding = nn.Parameter(torch.empty(plan.width)) if has_class else None
        self.position = nn.Parameter(torch.empty(self.side**2 + has_class, plan.width))
        self.pre_norm = nn.LayerNorm(plan.width, eps=plan.norm_eps) if has_class else None
        depth = feature_depth(plan)
        self.blocks = nn.ModuleList(EncoderBlock(plan) for _ in range(depth))
        ends_with_norm = plan.layout == "siglip" and depth == plan.layers
        self.post_norm = nn.LayerNorm(plan.width, eps=plan.norm_eps) if ends_with_norm else None

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Takes normalised images, one NCHW tensor per size; returns patches_NPV for each, the class token dropped."""
        groups = [self.embed(pixels_NCHW) for pixels_NCHW in images]
        for block in self.blocks:
            groups = block(groups)
        if self.post_norm is not None:
            groups = [self.post_norm(x_NPV) for x_NPV in groups]
        return groups if self.class_embedding is None else [x_NPV[:, 1:] for x_NPV in groups]

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """Cuts into patches and adds positions, interpolated to the images' size. Raises DataError for sizes that cannot be cut."""
        rows, columns = self.grid(pixels_NCHW)
        x_NPV = self.patch(pixels_NCHW).flatten(2).transpose(1, 2)
        position_PV = interpolate_positions(self.position, self.side, rows, columns)
        if self.class_embedding is None or self.pre_norm is None:
            return x_NPV + position_PV
        class_N1V = self.class_embedding.to(x_NPV.dtype).expand(x_NPV.shape[0], 1, -1)
        return self.pre_norm(torch.cat((class_N1V, x_NPV), dim=1) + position_PV)

    def grid(self, pixels_NCHW: Tensor) -> tuple[int, int]:
        """Patch rows and columns of these images. Raises DataError when they are no RGB images of whole patches."""
        size, patch = tuple(pixels_NCHW.shape), self.plan.patch_size
        if len(size) != 4 or size[1] != 3:
            raise DataError(f"pixel_values of shape {size}: images are N x 3 x height x width; convert to RGB before stacking them")
        if size[2] < patch or size[3] < patch:
            raise DataError(f"images of {size[2]}x{size[3]} pixels are smaller than a patch ({patch}); resize to model.image.size")
        return size[2] // patch, size[3] // patch  # what does not fill a patch at the right and bottom is not seen, as in the references


def feature_depth(plan: EncoderPlan) -> int:
    """How many blocks run before the chosen features. Raises ConfigError when there is no such layer."""
    depth = plan.feature_layer + plan.layers + 1 if plan.feature_layer < 0 else plan.feature_layer
    if not 0 < depth <= plan.layers:
        raise ConfigError(f"encoder.feature_layer={plan.feature_layer} is none of the {plan.layers} layers; use -{plan.layers} to -1")
    return depth


def check_encoder(plan: EncoderPlan) -> None:
    """Raises ConfigError for shapes that cannot work."""
    if plan.width % plan.heads:
        raise ConfigError(f"encoder.width={plan.width} does not divide by encoder.heads={plan.heads}; change one of them")
    if plan.image_size < plan.patch_size:
        raise ConfigError(f"encoder.image_size={plan.image_size} is smaller than encoder.patch_size={plan.patch_size}; use a larger image")


def interpolate_positions(position_PV: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """Resizes a side x side position embedding to rows x columns: bicubic in fp32, corners not aligned, no antialias, as `transformers`
    does for CLIP and SigLIP. A class token's row before the grid stays as it is."""
    if rows == columns == side:
        return position_PV
    extra = position_PV.shape[0] - side**2
    assert extra in (0, 1)
    grid_1VRC = position_PV[extra:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1VRC, size=(rows, columns), mode="bicubic", align_corners=False)
    resized_PV = resized[0].flatten(1).T.to(position_PV.dtype)
    return torch.cat((position_PV[:extra], resized_PV)) if extra else resized_PV
