"""Generation against full recomputation and against `transformers`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from stagecoach.contract.plan import Model, Moe, RopeScaling
from stagecoach.errors import ConfigError, DataError
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.generation import Prompt, PromptImage, Sampling, choose, generate, keep_nucleus
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.weights.exporting import export_decoder
from stagecoach_workloads.weights.sources import TensorsInMemory

C = 4


def lively(plan: Model) -> MultimodalModel:
    model = build_model(plan, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def image(side: int = 16, position: int = 0) -> PromptImage:
    return PromptImage(pixels_CHW=torch.randint(0, 256, (3, side, side), dtype=torch.uint8), position=position)


def prompts() -> list[Prompt]:
    """Unequal lengths; no image, one, two of different sizes."""

    def draw(length: int) -> list[int]:
        return torch.randint(0, 60, (length,)).tolist()

    return [
        Prompt(tokens=draw(3)),
        Prompt(tokens=draw(11), images=[image(position=2)]),
        Prompt(tokens=draw(14), images=[image(32, position=1), image(position=8)]),
        Prompt(tokens=draw(1)),
    ]


def recomputed(model: MultimodalModel, prompt: Prompt, count: int) -> list[int]:
    """Greedy, the whole row again for each token, no cache."""
    tokens = list(prompt.tokens)
    images = {
        "pixel_values": [each.pixels_CHW[None] for each in prompt.images],
        "image_slots": torch.tensor([[0, each.position, C] for each in prompt.images]) if prompt.images else None,
    }
    with torch.no_grad():
        for _ in range(count):
            row = torch.tensor([tokens])
            out = model(row, document_ids_BT=torch.zeros_like(row), **images, want="logits")  # type: ignore[arg-type]
            tokens.append(int(out.logits_BTV[0, -1].argmax()))
    return tokens[len(prompt.tokens) :]


FACTORS = (1.0, 1.25, 1.5, 1.75)
LONGROPE = RopeScaling(kind="longrope", original_max_positions=12, short_factors=FACTORS, long_factors=tuple(4 * f for f in FACTORS))


@pytest.mark.parametrize("variant", ["dense", "window", "experts", "longrope"])  # prompts of 1, 3, 11 and 14: two outgrow 12, at 1 and 9
def test_cached_batches_equal_recomputing_each_prompt(variant: str, tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    changes = {
        "dense": {},
        "window": {"sliding_window": 4},
        "experts": {"moe": Moe(experts=4, every=2)},
        "longrope": {"rope_scaling": LONGROPE},
    }[variant]
    model = lively(replace(plan, decoder=replace(plan.decoder, **changes)))
    batch = prompts()
    completions = generate(model, batch, Sampling(max_new_tokens=9))
    assert model.training  # as it was
    model.eval()
    for prompt, completion in zip(batch, completions, strict=True):
        assert completion.tokens == recomputed(model, prompt, 9)
        assert not completion.finished
    assert len({token for completion in completions for token in completion.tokens}) > 3  # it does say something


@pytest.mark.parametrize("layout", ["llama", "qwen2", "phi3", "phi3 longrope"])
def test_greedy_equals_transformers_token_by_token(
    layout: str, tiny_model: Callable[..., Model], transformers: ModuleType, tmp_path: object
) -> None:
    plan = tiny_model()
    layout, _, scaled = layout.partition(" ")
    scaling = LONGROPE if scaled else None
    decoder = replace(plan.decoder, tied_embeddings=False, qkv_bias=layout == "qwen2", rope_scaling=scaling)
    model = lively(replace(plan, decoder=decoder))
    export_decoder(TensorsInMemory(model.state_dict()), model.plan.decoder, str(tmp_path), layout=layout)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    lengths = (3, 8)
    tokens = [torch.randint(0, 60, (length,)).tolist() for length in lengths]
    ours = generate(model, [Prompt(tokens=each) for each in tokens], Sampling(max_new_tokens=16))
    for each, completion in zip(tokens, ours, strict=True):
        out = peer.generate(
            torch.tensor([each]), attention_mask=torch.ones(1, len(each)), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert completion.tokens == out[0, len(each) :].tolist()


def test_stops_at_tokens_and_strings_and_cuts_the_text(tiny_model: Callable[..., Model]) -> None:
    model = lively(tiny_model())

    def decode(tokens: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    prompt = [Prompt(tokens=[5, 6, 7])]
    free = generate(model, prompt, Sampling(max_new_tokens=8), decode=decode)[0]
    assert free.text == decode(free.tokens)
    third = free.tokens[2]
    place = free.tokens.index(third)
    stopped = generate(model, prompt, Sampling(max_new_tokens=8, stop_tokens=frozenset({third})))[0]
    assert (stopped.tokens, stopped.finished, stopped.text) == (free.tokens[:place], True, None)
    by_text = generate(model, prompt, Sampling(max_new_tokens=8, stop_strings=(f"{third}>", "never")), decode=decode)[0]
    assert by_text.finished
    assert by_text.text == decode(free.tokens).split(f"{third}>")[0]


def test_sampling_is_seeded_per_row_and_stays_in_the_nucleus(tiny_model: Callable[..., Model]) -> None:
    model = lively(tiny_model())
    batch = [Prompt(tokens=[1, 2, 3]), Prompt(tokens=[4])]
    sampling = Sampling(max_new_tokens=12, temperature=1.5, seed=4)
    first, again = (generate(model, batch, sampling) for _ in range(2))
    alone = generate(model, batch[:1], sampling)
    other = generate(model, batch, replace(sampling, seed=5))
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert first[0].tokens == alone[0].tokens
    assert [c.tokens for c in first] != [c.tokens for c in other]
    assert generate(model, batch, replace(sampling, top_k=1))[0].tokens == generate(model, batch, Sampling(max_new_tokens=12))[0].tokens
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert keep_nucleus(logits, 0.7).isfinite().tolist() == [[True, True, False, False]]
    assert keep_nucleus(logits, 0.01).isfinite().sum() == 1
    draws = [choose(logits, Sampling(max_new_tokens=1, temperature=1.0), [torch.Generator().manual_seed(i)]).item() for i in range(400)]
    assert abs(draws.count(0) / 400 - 0.5) < 0.1


def test_requests_that_make_no_sense_are_named(tiny_model: Callable[..., Model]) -> None:
    model = build_model(tiny_model())
    assert generate(model, [], Sampling(max_new_tokens=1)) == []
    with pytest.raises(ConfigError, match="max_new_tokens=0 generates nothing"):
        generate(model, prompts(), Sampling(max_new_tokens=0))
    with pytest.raises(ConfigError, match=r"stop strings \('x',\) need decode"):
        generate(model, prompts(), Sampling(max_new_tokens=1, stop_strings=("x",)))
    with pytest.raises(ConfigError, match=r"top_p=0"):
        generate(model, prompts(), Sampling(max_new_tokens=1, temperature=1.0, top_p=0))
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(model, [Prompt(tokens=[1]), Prompt(tokens=[])], Sampling(max_new_tokens=1))
