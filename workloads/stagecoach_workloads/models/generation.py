"""Generation for evaluation. B prompts, T positions of the longest one, V vocabulary.

Greedy, or sampling with temperature, top-k and top-p (nucleus, arXiv:1904.09751); batches of unequal prompts; stop strings, which need
the tokenizer's decode; images at any place of a prompt, several and of several sizes (few-shot, mixed resolution per shot).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.errors import ConfigError, DataError
from stagecoach_workloads.models.kv_cache import KvCache
from stagecoach_workloads.models.multimodal import MultimodalModel

Decode = Callable[[Sequence[int]], str]


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
class Sampling:
    """How the next token is chosen and when a row ends. temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError for values that choose nothing."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} generates nothing; use 1 or more")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ConfigError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}: use temperature >= 0, top_k >= 1, 0 < top_p <= 1"
            )


@dataclass(kw_only=True)
class Completion:
    """What one prompt got: tokens without the one that ended it, and, when the caller can decode, text cut before the stop string."""

    tokens: list[int] = field(default_factory=list)
    text: str | None = None
    finished: bool = False  # False: cut off at max_new_tokens


@torch.no_grad()
def generate(model: MultimodalModel, prompts: Sequence[Prompt], sampling: Sampling, *, decode: Decode | None = None) -> list[Completion]:
    """Completes each prompt; equal token by token to running it alone and without a cache. Restores the model's training mode.

    Raises ConfigError for stop strings without `decode`, DataError for an empty prompt.
    """
    sampling.check()
    if sampling.stop_strings and decode is None:
        raise ConfigError(f"stop strings {sampling.stop_strings} need decode (the tokenizer's); pass it, or use stop_tokens")
    if not prompts:
        return []
    was_training = model.training
    model.eval()
    try:
        return _generate(model, prompts, sampling, decode)
    finally:
        model.train(was_training)


def _generate(model: MultimodalModel, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode | None) -> list[Completion]:
    device = model.decoder.embed.weight.device
    tokens_BT, real_BT = pad_left(prompts, device)
    pixel_values, slots, regions = stack_images(prompts, tokens_BT.shape[1], model.plan.connector.tokens, device)
    capacity = tokens_BT.shape[1] + sampling.max_new_tokens
    generators = [torch.Generator(device=device).manual_seed(sampling.seed + row) for row in range(len(prompts))]
    done = [Completion() for _ in prompts]

    def begin() -> tuple[KvCache, Tensor, Tensor]:
        """All positions so far through the model, into an empty cache."""
        cache = KvCache(model.plan.decoder, rows=len(prompts), capacity=capacity, device=device)
        cache.expect(real_BT)
        positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
        out = model(
            tokens_BT, positions_BT=positions_BT, pixel_values=pixel_values, image_slots=slots, image_regions=regions,
            want="last_logits", decoding=cache,
        )  # fmt: skip
        return cache, positions_BT, out.logits_BTV

    cache, positions_BT, logits_BTV = begin()
    for step in range(sampling.max_new_tokens):
        chosen_B = choose(logits_BTV[:, -1].float(), sampling, generators)
        for completion, token in zip(done, chosen_B.tolist(), strict=True):
            append(completion, token, sampling, decode)
        if all(completion.finished for completion in done) or step + 1 == sampling.max_new_tokens:
            break
        new_B1 = torch.ones_like(chosen_B[:, None], dtype=torch.bool)
        tokens_BT, real_BT = torch.cat((tokens_BT, chosen_B[:, None]), 1), torch.cat((real_BT, new_B1), 1)
        if any(outgrows(model.plan.decoder, len(prompt.tokens) + step + 1) for prompt in prompts):
            cache, positions_BT, logits_BTV = begin()
            continue
        cache.expect(new_B1)
        positions_BT = positions_BT[:, -1:] + 1
        logits_BTV = model(chosen_B[:, None], positions_BT=positions_BT, want="last_logits", decoding=cache).logits_BTV
    for completion in done:
        if decode is not None and completion.text is None:
            completion.text = decode(completion.tokens)
    return done


def outgrows(plan: DecoderPlan, length: int) -> bool:
    """True for a row that just became longer than longrope's short factors hold for: the keys kept so far were turned by those."""
    scaling = plan.rope_scaling
    return scaling is not None and scaling.kind == "longrope" and length == scaling.original_max_positions + 1


def append(completion: Completion, token: int, sampling: Sampling, decode: Decode | None) -> None:
    """Adds a token to a row that is not finished, and finishes it at a stop token or as soon as a stop string appears."""
    if completion.finished:
        return
    if token in sampling.stop_tokens:
        completion.finished = True
        return
    completion.tokens.append(token)
    if not sampling.stop_strings or decode is None:
        return
    text = decode(completion.tokens)
    found = [place for place in (text.find(stop) for stop in sampling.stop_strings) if place >= 0]
    if found:
        completion.text, completion.finished = text[: min(found)], True


def choose(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Returns tokens_B. Each row draws from its own generator, so that a row's text does not depend on its neighbours."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        kth_B1 = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if sampling.top_p < 1:
        logits_BV = keep_nucleus(logits_BV, sampling.top_p)
    probabilities_BV = logits_BV.softmax(-1)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities_BV, generators, strict=True)])


def keep_nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Hides all but the fewest tokens whose probabilities reach `top_p` together."""
    ordered_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
    before_BV = ordered_BV.softmax(-1).cumsum(-1) - ordered_BV.softmax(-1)
    hidden_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p)
    return logits_BV.masked_fill(hidden_BV, -torch.inf)


def pad_left(prompts: Sequence[Prompt], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (tokens_BT, real_BT); padding is token 0 and is never seen. Raises DataError for an empty prompt."""
    lengths = [len(prompt.tokens) for prompt in prompts]
    if 0 in lengths:
        raise DataError(f"prompt {lengths.index(0)} is empty; start it with at least one token")
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
