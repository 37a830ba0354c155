"""What a model is asked: tokens with images among them, and batches of such. B prompts, T positions of the longest, N images.

Few-shot prompts are longer ones: an image of a shot may have another size than the question's (MM1, arXiv:2403.09611 section 3.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PromptImage:
    """One encoded image (a tile counts as one) and the first of its placeholder positions in the prompt."""

    pixels_CHW: Tensor
    position: int
    region: tuple[int, int, int, int] | None = None  # top, left, bottom, right pixels that are no padding; None: all


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids with placeholders where images stand."""

    tokens: Sequence[int]
    images: Sequence[PromptImage] = ()


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """One encoded image (a tile counts as one) on its way into a prompt; `region` as in `PromptImage`."""

    pixels_CHW: Tensor
    region: tuple[int, int, int, int] | None = None


def build_prompt(parts: Sequence[Sequence[int] | ImagePart], *, image_token: int, tokens_per_image: int) -> Prompt:
    """A prompt from token runs and images in their order: text of shots, their images (or tiles, with the indicators' tokens between
    them), the question. Each image becomes `tokens_per_image` (the plan's connector.tokens) placeholders."""
    tokens: list[int] = []
    images: list[PromptImage] = []
    for part in parts:
        if isinstance(part, ImagePart):
            images.append(PromptImage(pixels_CHW=part.pixels_CHW, position=len(tokens), region=part.region))
            tokens += [image_token] * tokens_per_image
        else:
            tokens += part
    return Prompt(tokens=tokens, images=images)


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raises DataError for an empty prompt: there is nothing to go on from."""
    for number, prompt in enumerate(prompts):
        if not prompt.tokens:
            raise DataError(f"prompt {number} is empty; start it with at least one token")


def pad_left(prompts: Sequence[Prompt], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (tokens_BT, real_BT); padding is token 0 and is never seen."""
    lengths = [len(prompt.tokens) for prompt in prompts]
    T = max(lengths)
    rows = [[0] * (T - length) + list(prompt.tokens) for prompt, length in zip(prompts, lengths, strict=True)]
    real_BT = torch.arange(T)[None] >= (T - torch.tensor(lengths))[:, None]
    return torch.tensor(rows, device=device), real_BT.to(device)


def stack_images(
    prompts: Sequence[Prompt], length: int, tokens_per_image: int, device: torch.device
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Returns (pixel_values by size, image_slots, image_regions) for rows padded on the left to `length`."""
    by_size: dict[tuple[int, ...], list[tuple[PromptImage, int, int]]] = {}
    for row, prompt in enumerate(prompts):
        shift = length - len(prompt.tokens)
        for image in prompt.images:
            by_size.setdefault(tuple(image.pixels_CHW.shape), []).append((image, row, image.position + shift))
    if not by_size:
        return [], None, None
    groups = list(by_size.values())
    slots = torch.tensor([[row, start, tokens_per_image] for group in groups for _, row, start in group])
    pixel_values = [torch.stack([image.pixels_CHW for image, _, _ in group]).to(device) for group in groups]
    regions = torch.tensor([_region(image) for group in groups for image, _, _ in group])
    return pixel_values, slots, regions


def _region(image: PromptImage) -> tuple[int, int, int, int]:
    return image.region or (0, 0, image.pixels_CHW.shape[1], image.pixels_CHW.shape[2])
