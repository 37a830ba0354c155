"""The weights that training from nothing begins with."""

import math

import pytest
from torch import nn

from stagecoach.recipes.resolve import resolve
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.multimodal import MultimodalModel

RESIDUAL = math.sqrt(2 * 4)  # the miniature's decoder has four layers


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return build_model(resolve("mm1_tiny_moe", []).plan.stage("pretrain").model, seed=3)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("encoder.patch.weight", 1 / math.sqrt(3 * 8 * 8)),
        ("encoder.position", 1 / math.sqrt(96)),
        ("encoder.blocks.0.mlp.down.weight", 1 / math.sqrt(384)),
        ("connector.readout.2.weight", 1 / math.sqrt(128)),
        ("decoder.embed.weight", 1 / math.sqrt(128)),
        ("decoder.blocks.0.attention.q.weight", 1 / math.sqrt(128)),
        ("decoder.blocks.0.attention.o.weight", 1 / math.sqrt(128) / RESIDUAL),
        ("decoder.blocks.0.ffn.down.weight", 1 / math.sqrt(352) / RESIDUAL),
        ("decoder.blocks.1.ffn.up", 1 / math.sqrt(128)),  # experts multiply from the left
        ("decoder.blocks.1.ffn.down", 1 / math.sqrt(352) / RESIDUAL),
    ],
)
def test_a_signal_keeps_its_size(model: MultimodalModel, name: str, std: float) -> None:
    assert dict(model.named_parameters())[name].std().item() == pytest.approx(std, rel=0.05)


def test_norms_pass_on_and_biases_add_nothing(model: MultimodalModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            assert bool((module.weight == 1).all())
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            assert bool((bias == 0).all())
