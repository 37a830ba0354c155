"""Encoder, connector and decoder as one model. B rows, T positions, D model width, V vocabulary, N images, C positions of one image.

The LLaVA-style join (arXiv:2304.08485) that MM1 (arXiv:2403.09611) and BLIP-3 (arXiv:2408.08872) use: image features stand in the
token stream where placeholders were. Rows are packed from documents; a row, a batch or a rank may have no image at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.errors import DataError
from stagecoach_workloads.models.attention import Backend, RowMask, build_row_mask, default_backend, document_lengths
from stagecoach_workloads.models.connectors.build import build_connector
from stagecoach_workloads.models.decoder import Decoder, LayerCache
from stagecoach_workloads.models.join import check_placeholders, check_slots, place_features
from stagecoach_workloads.models.loss import chunked_cross_entropy, chunked_log_probs
from stagecoach_workloads.models.moe import RouterLosses
from stagecoach_workloads.models.vit import VisionEncoder

Want = Literal["loss", "log_probs", "logits", "last_logits", "hidden"]


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a forward pass was asked for; the rest is None."""

    loss_sum: Tensor | None = None  # fp32 scalar over this call's targets; divide by the global number of targets, once
    num_targets: Tensor | None = None  # int64 scalar
    cross_entropy_sum: Tensor | None = None  # detached: the loss without router losses
    token_losses_BT: Tensor | None = None  # detached: each position's cross-entropy, 0 where nothing is predicted
    router: RouterLosses | None = None
    log_probs_BT: Tensor | None = None
    logits_BTV: Tensor | None = None  # B1V for "last_logits"
    hidden_BTD: Tensor | None = None


class DecodingState(Protocol):
    """What generation hands to the model: where each layer keeps its keys, the mask over them, and how long each row is."""

    layers: list[LayerCache]

    @property
    def row_lengths(self) -> Tensor:
        """lengths_B1: real positions of each row, the new ones included."""
        ...

    def mask(self) -> RowMask:
        """Who of the new positions sees which stored ones."""
        ...


class MultimodalModel(nn.Module):
    """See the file's docstring. Everything goes through `forward`, so that sharded weights are gathered where they are needed."""

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.plan = plan
        self.encoder = VisionEncoder(plan.encoder)
        self.connector = build_connector(plan)
        self.decoder = Decoder(plan.decoder)
        self.attention_backend: Backend | None = None  # None: the device's default
        self.image_token: int | None = None  # checked against slots on CPU batches when set
        self.z_loss = 0.0
        self._pixel_statistics: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        labels_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        pixel_values: Sequence[Tensor] = (),
        image_slots: Tensor | None = None,
        image_regions: Tensor | None = None,
        sample_ids: Sequence[object] | None = None,
        want: Want = "loss",
        decoding: DecodingState | None = None,
    ) -> ModelOutput:
        """Runs rows of tokens and images.

        `pixel_values`: uint8 NCHW, one tensor per size; `image_slots`: N x 3 (row, first position, count) in their order, on the CPU;
        `image_regions`: N x 4 (top, left, bottom, right) pixels that are no padding, read when `plan.image.mask_padding`.
        `labels_BT`: what each position must predict, IGNORE_INDEX where nothing. Without `document_ids_BT` (-1: padding) a row is one
        document; without `positions_BT` positions count from the row's start. Raises DataError, naming the sample, on a mismatch.
        """
        B, T = tokens_BT.shape
        embeddings_BTD = self.embed(tokens_BT, pixel_values, image_slots, image_regions, sample_ids)
        if positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        if decoding is None:
            backend = self.attention_backend or default_backend(tokens_BT.device)
            mask = build_row_mask(document_ids_BT, window=self.plan.decoder.sliding_window, length=T, backend=backend)
            by_length = document_ids_BT is not None and self.decoder.rotary.by_length
            lengths_BT = document_lengths(document_ids_BT) if by_length and document_ids_BT is not None else None
            out = self.decoder(embeddings_BTD, positions_BT, mask, lengths_BT=lengths_BT)
        else:
            out = self.decoder(embeddings_BTD, positions_BT, decoding.mask(), decoding.layers, decoding.row_lengths)
        return self.finish(out.hidden_BTD, out.router, labels_BT, want)

    def embed(
        self,
        tokens_BT: Tensor,
        pixel_values: Sequence[Tensor],
        image_slots: Tensor | None,
        image_regions: Tensor | None = None,
        sample_ids: Sequence[object] | None = None,
    ) -> Tensor:
        """Returns embeddings_BTD of tokens, images in their slots. Without images encoder and connector still run while training (on
        one black image, weighted zero), or a sharded run would wait for ever for this rank to gather their weights."""
        if self.image_token is not None and tokens_BT.device.type == "cpu":
            check_placeholders(tokens_BT, image_slots, image_token=self.image_token, sample_ids=sample_ids)
        embeddings_BTD = self.decoder.embed(tokens_BT)
        num_images = sum(len(pixels) for pixels in pixel_values)
        if num_images == 0:
            if image_slots is not None and len(image_slots):
                raise DataError(f"{len(image_slots)} image slots but no image; each slot needs one line of pixel_values")
            if not self.training:
                return embeddings_BTD
            features_NCD = self.encode_images([self.black_image(tokens_BT.device)], None)
            return embeddings_BTD + 0.0 * features_NCD.sum().to(embeddings_BTD.dtype)
        if image_slots is None:
            raise DataError(f"{num_images} images but no image_slots; pass a line (row, start, count) for each image")
        B, T = tokens_BT.shape
        tokens_per_image = self.plan.connector.tokens
        check_slots(image_slots, num_images=num_images, tokens_per_image=tokens_per_image, rows=B, length=T, sample_ids=sample_ids)
        return place_features(embeddings_BTD, self.encode_images(pixel_values, image_regions), image_slots)

    def encode_images(self, pixel_values: Sequence[Tensor], image_regions: Tensor | None) -> Tensor:
        """Returns features_NCD of uint8 images, one NCHW tensor per size."""
        groups = [pixels for pixels in pixel_values if len(pixels)]
        grids = [self.encoder.grid(pixels) for pixels in groups]
        seen = seen_patches(groups, grids, self.plan.encoder.patch_size, image_regions if self.plan.image.mask_padding else None)
        patches = self.encoder([self.normalise(pixels_NCHW) for pixels_NCHW in groups])
        return self.connector(patches, grids, seen)

    def normalise(self, pixels_NCHW: Tensor) -> Tensor:
        """uint8 to the plan's mean and deviation, in the weights' type; floats are taken as normalised already."""
        dtype = self.encoder.patch.weight.dtype
        if pixels_NCHW.is_floating_point():
            return pixels_NCHW.to(dtype)
        if pixels_NCHW.dtype != torch.uint8:
            raise DataError(f"pixel_values of type {pixels_NCHW.dtype}; give uint8 (0 to 255) or normalised floats")
        scale_C11, shift_C11 = self.pixel_statistics(pixels_NCHW.device)
        return (pixels_NCHW.float() * scale_C11 - shift_C11).to(dtype)

    def pixel_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """1 / (255 std) and mean / std, kept per device: copying them each step would wait for it."""
        if device not in self._pixel_statistics:
            mean, std = torch.tensor(self.plan.image.mean), torch.tensor(self.plan.image.std)
            both = (1 / (255 * std), mean / std)
            self._pixel_statistics[device] = (both[0][:, None, None].to(device), both[1][:, None, None].to(device))
        return self._pixel_statistics[device]

    def black_image(self, device: torch.device) -> Tensor:
        """One image of the plan's size."""
        return torch.zeros(1, 3, self.plan.image.size, self.plan.image.size, dtype=torch.uint8, device=device)

    def finish(self, hidden_BTD: Tensor, router: RouterLosses | None, labels_BT: Tensor | None, want: Want) -> ModelOutput:
        """Turns hidden states into what is wanted."""
        if want == "hidden":
            return ModelOutput(hidden_BTD=hidden_BTD, router=router)
        if want == "logits":
            return ModelOutput(logits_BTV=self.decoder.logits(hidden_BTD), router=router)
        if want == "last_logits":
            return ModelOutput(logits_BTV=self.decoder.logits(hidden_BTD[:, -1:]), router=router)
        if labels_BT is None:
            raise DataError(f"want={want!r} needs labels_BT (what each position must predict)")
        hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT.flatten()
        if want == "log_probs":
            log_probs_N = chunked_log_probs(hidden_ND, self.decoder.head_weight, labels_N)
            return ModelOutput(log_probs_BT=log_probs_N.view_as(labels_BT), router=router)
        token_loss = chunked_cross_entropy(hidden_ND, self.decoder.head_weight, labels_N, z_loss=self.z_loss)
        loss_sum, moe = token_loss.loss_sum, self.plan.decoder.moe
        if router is not None and moe is not None:
            # Means over this call's tokens, weighted by its targets: after the division by the global count they are global means.
            auxiliary = moe.load_balance_weight * router.load_balance + moe.router_z_weight * router.router_z
            loss_sum = loss_sum + auxiliary * token_loss.num_targets
        return ModelOutput(
            loss_sum=loss_sum, num_targets=token_loss.num_targets, cross_entropy_sum=token_loss.loss_sum.detach(),
            token_losses_BT=None if token_loss.each_N is None else token_loss.each_N.view_as(labels_BT), router=router,
        )  # fmt: skip


def seen_patches(
    groups: Sequence[Tensor], grids: Sequence[tuple[int, int]], patch: int, image_regions: Tensor | None
) -> list[Tensor | None]:
    """Per image size seen_NP (bool): the patch has at least one pixel inside its image's region. None without regions."""
    if image_regions is None:
        return [None] * len(groups)
    counts = [len(group) for group in groups]
    regions = torch.split(image_regions.to(groups[0].device), counts)
    return [_inside(region_N4, grid, patch) for region_N4, grid in zip(regions, grids, strict=True)]


def _inside(region_N4: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    top, left, bottom, right = region_N4[:, :, None].unbind(1)
    row_R = torch.arange(grid[0], device=region_N4.device) * patch
    column_C = torch.arange(grid[1], device=region_N4.device) * patch
    rows_NR = (row_R < bottom) & (row_R + patch > top)
    columns_NC = (column_C < right) & (column_C + patch > left)
    return (rows_NR[:, :, None] & columns_NC[:, None, :]).flatten(1)
