"""How likely given answers are, for multiple choice. B prompts, T positions of the longest one, L tokens of the longest option.

    scores = score_options(model, [prompt, ...], [[encode(" cat"), encode(" dog")], ...])
    best = max(range(2), key=lambda option: scores[0][option].mean)

A prompt (with its images) runs once; each option is tried behind it on the kept keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.errors import DataError
from stagecoach_workloads.models.generation import evaluating
from stagecoach_workloads.models.kv_cache import KvCache
from stagecoach_workloads.models.loss import IGNORE_INDEX
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.prompts import Prompt, check_prompts, pad_left, stack_images

Option = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class OptionScore:
    """Natural logarithm of an option's probability after its prompt."""

    log_prob: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Per token: options of several lengths compare fairly by it."""
        return self.log_prob / self.num_tokens


@torch.no_grad()
def score_options(
    model: MultimodalModel, prompts: Sequence[Prompt], options: Sequence[Sequence[Option]], *, rows: int = 32
) -> list[list[OptionScore]]:
    """Scores each prompt's options; equal to running prompt and option alone as one row. Restores the model's training mode.

    Prompts may have several numbers of options. At most `rows` prompts run at once. Raises DataError for an empty prompt or option.
    """
    if len(prompts) != len(options):
        raise DataError(f"{len(options)} lists of options for {len(prompts)} prompts; give one list a prompt")
    empty = [(row, place) for row, each in enumerate(options) for place, option in enumerate(each) if not option]
    if empty:
        raise DataError(f"option {empty[0][1]} of prompt {empty[0][0]} is empty; give each at least one token")
    check_prompts(prompts)
    found: list[list[OptionScore]] = []
    with evaluating(model):
        for first in range(0, len(prompts), rows):
            found += _score(model, prompts[first : first + rows], options[first : first + rows])
    return found


def _score(model: MultimodalModel, prompts: Sequence[Prompt], options: Sequence[Sequence[Option]]) -> list[list[OptionScore]]:
    found: list[list[OptionScore]] = [[] for _ in prompts]
    longest = max((len(option) for each in options for option in each), default=0)
    shared = None if model.decoder.rotary.by_length else _Prefix(model, prompts, longest=longest)
    for place in range(max(map(len, options), default=0)):
        rows = [row for row, each in enumerate(options) if place < len(each)]
        tried = [each[place] if place < len(each) else each[0] if each else [0] for each in options]
        sums_B = shared.log_probs(tried) if shared else _whole(model, prompts, tried)
        for row in rows:
            found[row].append(OptionScore(log_prob=sums_B[row].item(), num_tokens=len(tried[row])))
    return found


class _Prefix:
    """Prompts that ran once."""

    def __init__(self, model: MultimodalModel, prompts: Sequence[Prompt], *, longest: int) -> None:
        self.model, self.device = model, model.decoder.embed.weight.device
        tokens_BT, real_BT = pad_left(prompts, self.device)
        self.length = tokens_BT.shape[1]
        pixel_values, slots, regions = stack_images(prompts, self.length, model.plan.connector.tokens, self.device)
        self.cache = KvCache(model.plan.decoder, rows=len(prompts), capacity=self.length + longest, device=self.device)
        self.cache.expect(real_BT)
        positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
        self.next_B1 = positions_BT[:, -1:] + 1
        out = model(
            tokens_BT, positions_BT=positions_BT, pixel_values=pixel_values, image_slots=slots, image_regions=regions,
            want="last_logits", decoding=self.cache,
        )  # fmt: skip
        assert out.logits_BTV is not None
        self.first_BV = out.logits_BTV[:, -1].float().log_softmax(-1)

    def log_probs(self, tried: Sequence[Option]) -> Tensor:
        """Returns sums_B of one option a prompt."""
        tokens_BL, labels_BL = _pad_right(tried, self.device)
        sums_B = self.first_BV.gather(1, tokens_BL[:, :1])[:, 0]
        if tokens_BL.shape[1] == 1:
            return sums_B
        self.cache.expect(labels_BL[:, :-1] != IGNORE_INDEX)
        positions_BL = self.next_B1 + torch.arange(tokens_BL.shape[1] - 1, device=self.device)
        out = self.model(
            tokens_BL[:, :-1], positions_BT=positions_BL, labels_BT=labels_BL[:, 1:], want="log_probs", decoding=self.cache
        )  # fmt: skip
        self.cache.cut(self.length)
        return sums_B + out.log_probs_BT.sum(1)


def _whole(model: MultimodalModel, prompts: Sequence[Prompt], tried: Sequence[Option]) -> Tensor:
    """The same without sharing: longrope turns a prompt's keys by how long the row becomes."""
    device = model.decoder.embed.weight.device
    both = [Prompt(tokens=[*prompt.tokens, *option], images=prompt.images) for prompt, option in zip(prompts, tried, strict=True)]
    tokens_BT, real_BT = pad_left(both, device)
    labels_BT = torch.full_like(tokens_BT, IGNORE_INDEX)
    for row, option in enumerate(tried):
        labels_BT[row, -len(option) - 1 : -1] = torch.tensor(list(option), device=device)
    pixel_values, slots, regions = stack_images(both, tokens_BT.shape[1], model.plan.connector.tokens, device)
    cache = KvCache(model.plan.decoder, rows=len(prompts), capacity=tokens_BT.shape[1], device=device)
    cache.expect(real_BT)
    out = model(
        tokens_BT, positions_BT=(real_BT.cumsum(1) - 1).clamp(min=0), pixel_values=pixel_values, image_slots=slots,
        image_regions=regions, labels_BT=labels_BT, want="log_probs", decoding=cache,
    )  # fmt: skip
    assert out.log_probs_BT is not None
    return out.log_probs_BT.sum(1)


def _pad_right(options: Sequence[Option], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (tokens_BL, labels_BL): padding is token 0 and IGNORE_INDEX."""
    longest = max(map(len, options))
    labels = [[*option, *[IGNORE_INDEX] * (longest - len(option))] for option in options]
    labels_BL = torch.tensor(labels, device=device)
    return labels_BL.clamp(min=0), labels_BL
