"""Answers' likelihoods against running each prompt and answer alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from stagecoach.contract.plan import Model, Moe, RopeScaling
from stagecoach.errors import DataError
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.generation import Sampling, generate
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.prompts import ImagePart, Prompt, build_prompt
from stagecoach_workloads.models.scoring import score_options

C, IMAGE_TOKEN = 4, 61
FACTORS = (1.0, 1.25, 1.5, 1.75)
LONGROPE = RopeScaling(kind="longrope", original_max_positions=12, short_factors=FACTORS, long_factors=tuple(4 * f for f in FACTORS))
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "window": {"sliding_window": 4},
    "experts": {"moe": Moe(experts=4, every=2)},
    "longrope": {"rope_scaling": LONGROPE},
}


def lively(plan: Model) -> MultimodalModel:
    model = build_model(plan, seed=3)
    model.image_token = IMAGE_TOKEN
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def picture(side: int) -> ImagePart:
    return ImagePart(pixels_CHW=torch.randint(0, 256, (3, side, side), dtype=torch.uint8))


def few_shot() -> list[Prompt]:
    """No image; one; two shots at low resolution before a question at high resolution."""
    parts: list[list[list[int] | ImagePart]] = [
        [[5, 6, 7]],
        [[1], picture(16), [8, 9]],
        [[1], picture(16), [3, 4], picture(16), [5], picture(32), [9, 9]],
    ]
    return [build_prompt(each, image_token=IMAGE_TOKEN, tokens_per_image=C) for each in parts]


def alone(model: MultimodalModel, prompt: Prompt, option: list[int]) -> float:
    """Log-probability of the option, from all logits of the whole row, without a cache."""
    row = torch.tensor([[*prompt.tokens, *option]])
    with torch.no_grad():
        logits = model(
            row,
            document_ids_BT=torch.zeros_like(row),
            pixel_values=[each.pixels_CHW[None] for each in prompt.images],
            image_slots=torch.tensor([[0, each.position, C] for each in prompt.images]) if prompt.images else None,
            want="logits",
        ).logits_BTV
    places = range(len(prompt.tokens) - 1, row.shape[1] - 1)
    return sum(float(logits[0, place].log_softmax(-1)[token]) for place, token in zip(places, option, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_equal_each_option_alone(variant: str, tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    model = lively(replace(plan, decoder=replace(plan.decoder, **VARIANTS[variant])))
    prompts, options = few_shot(), [[[3], [4, 5, 6]], [[7, 8, 9, 10, 11], [12], [13, 14]], [[1, 2], [2]]]
    scores = score_options(model, prompts, options)
    assert model.training  # as it was
    model.eval()
    assert [len(each) for each in scores] == [2, 3, 2]
    for prompt, given, got in zip(prompts, options, scores, strict=True):
        for option, score in zip(given, got, strict=True):
            assert score.log_prob == pytest.approx(alone(model, prompt, option), abs=1e-4)
            assert score.num_tokens == len(option)
            assert score.mean == score.log_prob / len(option)
    one_by_one = score_options(model, prompts, options, rows=1)
    for whole, single in zip(scores, one_by_one, strict=True):
        assert [score.log_prob for score in whole] == pytest.approx([score.log_prob for score in single], abs=1e-4)


def test_what_greedy_says_is_the_likeliest_option(tiny_model: Callable[..., Model]) -> None:
    model, prompts = lively(tiny_model()), few_shot()
    said = [completion.tokens for completion in generate(model, prompts, Sampling(max_new_tokens=1))]
    scores = score_options(model, prompts, [[[token] for token in range(60)]] * 3)
    for tokens, each in zip(said, scores, strict=True):
        assert max(range(60), key=lambda token: each[token].mean) == tokens[0]


def test_batches_of_any_size_say_the_same(tiny_model: Callable[..., Model]) -> None:
    model, prompts = lively(tiny_model()), few_shot()
    for sampling in (Sampling(max_new_tokens=6), Sampling(max_new_tokens=6, temperature=1.2, seed=3)):
        whole = generate(model, prompts, sampling)
        assert [c.tokens for c in generate(model, prompts, sampling, rows=2)] == [c.tokens for c in whole]


def test_prompts_place_images_where_they_stand() -> None:
    prompt = few_shot()[2]
    assert [(image.position, image.pixels_CHW.shape[1]) for image in prompt.images] == [(1, 16), (7, 16), (12, 32)]
    assert list(prompt.tokens[:8]) == [1, 61, 61, 61, 61, 3, 4, 61]


def test_requests_that_make_no_sense_are_named(tiny_model: Callable[..., Model]) -> None:
    model = build_model(tiny_model())
    prompt = Prompt(tokens=[1])
    assert score_options(model, [], []) == []
    assert score_options(model, [prompt], [[]]) == [[]]
    with pytest.raises(DataError, match="1 lists of options for 2 prompts"):
        score_options(model, [prompt, prompt], [[[1]]])
    with pytest.raises(DataError, match="option 1 of prompt 0 is empty"):
        score_options(model, [prompt], [[[1], []]])
    for rope in (None, LONGROPE):
        plan = tiny_model()
        asked = build_model(replace(plan, decoder=replace(plan.decoder, rope_scaling=rope)))
        with pytest.raises(DataError, match="prompt 1 is empty"):
            score_options(asked, [prompt, Prompt(tokens=[])], [[[1]], [[1]]])
