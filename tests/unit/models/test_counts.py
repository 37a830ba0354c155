"""Every preset's real modules against `stagecoach.costs`, to the last parameter; and FLOPs against a counter."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from stagecoach.contract.plan import Lora, Model, Moe
from stagecoach.costs.parameters import count_parameters
from stagecoach.recipes import RECIPES, recipe_function
from stagecoach_workloads.models.build import build_model, part_of


def assert_counts_agree(plan: Model) -> None:
    model, expected = build_model(plan, device="meta"), count_parameters(plan)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        assert parameter.is_meta
        parts["lora" if ".lora_" in name else part_of(name)] += parameter.numel()
    assert dict(parts) == {name: count for name, count in expected.by_part.items() if count}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected.trainable
    assert not list(model.buffers())  # nothing that a move from meta would leave undefined


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_has_the_parameters_that_plan_states(recipe: str) -> None:
    if find_spec(RECIPES[recipe].module) is None:
        pytest.skip(f"needs {RECIPES[recipe].module}, which this checkout lacks")
    for plan in {stage.model for stage in recipe_function(recipe)().stages}:
        assert_counts_agree(plan)


@pytest.mark.parametrize("kind", ["c_abstractor", "average_pool", "attention_pool", "perceiver"])
@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_every_connector_and_encoder_has_the_stated_parameters(kind: str, layout: str, tiny_model: Callable[..., Model]) -> None:
    model = tiny_model()
    for layer in (-1, -2):
        encoder = replace(model.encoder, layout=layout, feature_layer=layer)
        assert_counts_agree(replace(model, encoder=encoder, connector=replace(model.connector, kind=kind)))


def test_options_of_the_decoder_have_the_stated_parameters(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model()
    for changes in (
        {"tied_embeddings": False},
        {"qkv_bias": True, "output_bias": True, "ffn_bias": True},
        {"moe": Moe(experts=4, every=2)},
        {"moe": Moe(experts=3, every=1)},
    ):
        assert_counts_agree(replace(model, decoder=replace(model.decoder, **changes)))
    assert_counts_agree(replace(model, lora=Lora(rank=4, alpha=8.0, targets=("q", "k", "v", "o", "gate", "up", "down"))))
    assert_counts_agree(replace(model, trainable=("connector", "embeddings")))


def test_weights_from_a_seed_do_not_depend_on_order_and_are_finite(tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model(decoder=replace(tiny_model().decoder, moe=Moe(experts=4, every=2)), lora=Lora(rank=2, alpha=4.0))
    first, second, other = (build_model(plan, seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = [name for name in first if not torch.equal(first[name], other[name])]
    assert len(changed) > len(first) / 2
    assert all(tensor.isfinite().all() for tensor in first.values())
