"""Generation for evaluation. B prompts, T positions of the longest one, V vocabulary.

    prompt = build_prompt([bos, ImagePart(pixels_CHW=shot), shot_text, ImagePart(pixels_CHW=image), question],
                          image_token=tokenizer.image_id, tokens_per_image=plan.connector.tokens)
    generate(model, [prompt, ...], Sampling(max_new_tokens=16, stop_strings=("\\n",)), decode=tokenizer.decode)[0].text

Greedy, or sampling with temperature, top-k and top-p (nucleus, arXiv:1904.09751); any number of unequal prompts; stop strings, which
need the tokenizer's decode; images at any place, several and of several sizes (few-shot, mixed resolution per shot: `prompts.py`). Which
of several given answers is likeliest says `scoring.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.kv_cache import KvCache
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.prompts import Prompt, PromptImage, check_prompts, pad_left, stack_images

__all__ = ["Completion", "Prompt", "PromptImage", "Sampling", "generate"]

Decode = Callable[[Sequence[int]], str]


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
def generate(
    model: MultimodalModel, prompts: Sequence[Prompt], sampling: Sampling, *, decode: Decode | None = None, rows: int = 32
) -> list[Completion]:
    """Completes each prompt; equal token by token to running it alone and without a cache. Restores the model's training mode.

    At most `rows` prompts run at once, which changes nothing but memory. Raises ConfigError for stop strings without `decode`,
    DataError for an empty prompt.
    """
    sampling.check()
    if sampling.stop_strings and decode is None:
        raise ConfigError(f"stop strings {sampling.stop_strings} need decode (the tokenizer's); pass it, or use stop_tokens")
    check_prompts(prompts)
    with evaluating(model):
        batches = [(first, prompts[first : first + rows]) for first in range(0, len(prompts), rows)]
        return [each for first, batch in batches for each in _generate(model, batch, sampling, decode, first)]


@contextmanager
def evaluating(model: MultimodalModel) -> Iterator[None]:
    """Evaluation mode, and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _generate(model: MultimodalModel, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode | None, first: int) -> list[Completion]:
    """One batch; `first` is the number of its first prompt, which seeds its rows."""
    device = model.decoder.embed.weight.device
    tokens_BT, real_BT = pad_left(prompts, device)
    pixel_values, slots, regions = stack_images(prompts, tokens_BT.shape[1], model.plan.connector.tokens, device)
    capacity = tokens_BT.shape[1] + sampling.max_new_tokens
    generators = [torch.Generator(device=device).manual_seed(sampling.seed + first + row) for row in range(len(prompts))]
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
