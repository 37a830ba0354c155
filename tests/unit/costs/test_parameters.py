"""Parameter counts against published layouts and the papers' totals."""

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract.plan import Connector, Decoder, Encoder, Lora
from stagecoach.costs.parameters import connector_tensors, count_parameters, encoder_tensors, model_tensors
from stagecoach.recipes import parts, recipe_function

PUBLISHED = Path(__file__).parents[1] / "models" / "fixtures"


def published_shapes(name: str) -> list[tuple[int, ...]]:
    """Shapes of the reference's weights, from the safetensors header."""
    body = (PUBLISHED / name).read_bytes()
    header = json.loads(body[8 : 8 + struct.unpack("<Q", body[:8])[0]])
    return sorted(tuple(entry["shape"]) for key, entry in header.items() if key.startswith("weights."))


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1 x 1 convolution's weight as a linear's."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) and shape[1] != 1 else shape


def test_c_abstractor_has_the_tensors_of_the_published_one() -> None:
    encoder = Encoder(layout="siglip", width=32, layers=1, heads=1, mlp_width=1, patch_size=1, image_size=9)
    decoder = Decoder(vocab_size=1, width=40, layers=1, heads=1, kv_heads=1, head_dim=2, ffn_width=1)
    ours = connector_tensors(Connector(kind="c_abstractor", tokens=16, hidden=48, depth=3), encoder, decoder)
    published = published_shapes("c_abstractor.safetensors")
    assert sorted(squeezed(tensor.shape) for tensor in ours) == sorted(squeezed(shape) for shape in published)
    assert sum(tensor.count for tensor in ours) == 45_908


def test_perceiver_has_the_tensors_of_the_published_one_and_a_read_out() -> None:
    encoder = Encoder(layout="siglip", width=48, layers=1, heads=1, mlp_width=1, patch_size=1, image_size=5)
    decoder = Decoder(vocab_size=1, width=40, layers=1, heads=1, kv_heads=1, head_dim=2, ffn_width=1)
    ours = connector_tensors(Connector(kind="perceiver", tokens=8, depth=3, heads=4, head_dim=12), encoder, decoder)
    without_read_out = [tensor.shape for tensor in ours if not tensor.name.startswith("readout")]
    assert sorted(without_read_out) == published_shapes("perceiver_resampler.safetensors")
    assert sum(math.prod(shape) for shape in without_read_out) == 84_288


def test_encoders_have_the_published_counts() -> None:
    siglip, clip = (sum(tensor.count for tensor in encoder_tensors(one)) for one in (parts.siglip_so400m_384(), parts.vit_l(336)))
    assert siglip == 428_225_600 - 15_238_352  # Hugging Face's SiglipVisionModel less its pooling head
    assert clip == 303_507_456 - 2 * 1024  # Hugging Face's CLIPVisionModel ViT-L/14-336 less its norm of the pooled output
    assert sum(tensor.count for tensor in encoder_tensors(parts.vit_h_378())) == pytest.approx(632e6, rel=0.002)


def test_phi3_mini_has_the_published_count() -> None:
    plain = replace(recipe_function("blip3_4b")().stages[0].model, decoder=replace(parts.phi3_mini(), added_tokens=0))
    by_part = count_parameters(plain).by_part
    assert by_part["decoder"] + by_part["embeddings"] == 3_821_079_552  # the model card's 3.8B, to the last one


@pytest.mark.parametrize(("recipe", "n"), [("mm1_1b", 1.2e9), ("mm1_3b", 2.9e9), ("mm1_7b", 6.4e9), ("mm1_30b", 30e9)])
def test_non_embedding_counts_are_the_papers(recipe: str, n: float) -> None:
    model = recipe_function(recipe)().stages[0].model
    assert count_parameters(model).non_embedding == pytest.approx(n, rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "total", "active"), [("mm1_3b_moe", 64e9, 4.7e9), ("mm1_7b_moe", 47e9, 8.7e9), ("mm1_5_3b_moe", 64e9, 4.7e9)]
)
def test_expert_models_have_the_papers_totals(recipe: str, total: float, active: float) -> None:
    counted = count_parameters(recipe_function(recipe)().stages[0].model)
    assert counted.total == pytest.approx(total, rel=0.05)
    assert counted.active == pytest.approx(active, rel=0.05)


def test_active_leaves_out_exactly_the_experts_a_token_does_not_pass() -> None:
    dense, sparse = (recipe_function(name)().stages[0].model for name in ("mm1_tiny", "mm1_tiny_moe"))
    ffn = 3 * dense.decoder.width * dense.decoder.ffn_width
    layers, router = 2, 2 * 4 * dense.decoder.width
    assert count_parameters(sparse).total == count_parameters(dense).total + layers * 3 * ffn + router
    assert count_parameters(sparse).active == count_parameters(dense).total + layers * 1 * ffn + router  # top 2 instead of 1


def test_frozen_parts_and_adapters_are_not_trainable() -> None:
    model = recipe_function("blip3_4b")().stages[0].model
    counted = count_parameters(model)
    assert counted.trainable == counted.total - counted.by_part["encoder"]
    adapted = replace(model, lora=Lora(rank=52, alpha=104.0, targets=("q", "k", "v", "o", "gate", "up", "down")))
    counted = count_parameters(adapted)
    assert counted.trainable == counted.by_part["lora"]
    assert counted.trainable / (counted.by_part["decoder"] + counted.by_part["embeddings"]) == pytest.approx(0.025, rel=0.05)


def test_shapes_do_not_depend_on_the_size_that_is_fed() -> None:
    pretrain, sft = recipe_function("mm1_3b")().stages
    assert pretrain.model.image.size != sft.model.image.size
    assert model_tensors(pretrain.model) == model_tensors(sft.model)
