"""Our vision encoder against the published implementations, fp32, random weights."""

from types import ModuleType
from typing import Any

import pytest
import torch

from stagecoach.contract.plan import Encoder as EncoderPlan
from stagecoach.errors import ConfigError, DataError
from stagecoach_workloads.models.vit import VisionEncoder, interpolate_positions
from stagecoach_workloads.weights.layouts import encoder_pieces, unused_in_encoder
from stagecoach_workloads.weights.loading import load_pieces
from stagecoach_workloads.weights.sources import TensorsInMemory


def encoder_plan(layout: str, **changes: Any) -> EncoderPlan:
    plan = {"layout": layout, "width": 36, "layers": 3, "heads": 3, "mlp_width": 52, "patch_size": 14, "image_size": 56}
    return EncoderPlan(**{**plan, **changes})


def build_pair(transformers: ModuleType, plan: EncoderPlan) -> tuple[Any, VisionEncoder]:
    kind = {"clip": "CLIPVision", "siglip": "SiglipVision"}[plan.layout]
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=plan.width, intermediate_size=plan.mlp_width, num_hidden_layers=plan.layers, num_attention_heads=plan.heads,
        image_size=plan.image_size, patch_size=plan.patch_size, layer_norm_eps=plan.norm_eps,
    )  # fmt: skip
    peer = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = VisionEncoder(plan)
    load_pieces(ours, encoder_pieces(plan), TensorsInMemory(peer.state_dict()), ignore=lambda name: unused_in_encoder(name, plan))
    return peer, ours


@pytest.mark.parametrize("layout", ["clip", "siglip"])
@pytest.mark.parametrize("pixels", [56, 28, 84, 70])  # as trained, smaller, larger, an odd number of patches
def test_patches_equal_the_published_encoder_at_every_size(layout: str, pixels: int, transformers: ModuleType) -> None:
    peer, ours = build_pair(transformers, encoder_plan(layout))
    images_NCHW = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        expected = peer(images_NCHW, interpolate_pos_encoding=True).last_hidden_state
        (patches_NPV,) = ours([images_NCHW])
    expected = expected[:, 1:] if layout == "clip" else expected
    assert (patches_NPV - expected).abs().max() < 1e-5
    assert patches_NPV.std() > 0.1


@pytest.mark.parametrize("layout", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-2, -3, 1])
def test_features_of_a_chosen_layer_equal_the_published_hidden_states(layout: str, layer: int, transformers: ModuleType) -> None:
    plan = encoder_plan(layout, feature_layer=layer)
    peer, ours = build_pair(transformers, plan)
    images_NCHW = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = peer(images_NCHW, output_hidden_states=True).hidden_states[layer]
        (patches_NPV,) = ours([images_NCHW])
    assert (patches_NPV - (expected[:, 1:] if layout == "clip" else expected)).abs().max() < 1e-5


@pytest.mark.parametrize("pixels", [224, 378, 448, 560, 672, 1344])
def test_positions_interpolate_as_the_published_encoder_does(pixels: int, transformers: ModuleType) -> None:
    plan = encoder_plan("siglip", width=6, heads=1, image_size=384)
    peer, ours = build_pair(transformers, plan)
    side = pixels // 14
    with torch.no_grad():
        expected = peer.embeddings.interpolate_pos_encoding(torch.empty(1, side**2, 6), pixels, pixels)[0]
        actual = interpolate_positions(ours.position, ours.side, side, side)
    assert (actual - expected).abs().max() < 1e-5


def test_sizes_run_together_as_they_run_apart() -> None:
    encoder = VisionEncoder(encoder_plan("clip", patch_size=4, image_size=16))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    small, large = torch.randn(2, 3, 16, 16), torch.randn(1, 3, 24, 32)
    together = encoder([small, large])
    assert torch.equal(together[0], encoder([small])[0])
    assert torch.equal(together[1], encoder([large])[0])
    assert together[1].shape == (1, 6 * 8, 36)


def test_layers_past_the_chosen_one_are_not_built() -> None:
    assert len(VisionEncoder(encoder_plan("siglip", feature_layer=-2)).blocks) == 2
    with pytest.raises(ConfigError, match=r"encoder.feature_layer=-4 is none of the 3 layers; use -3 to -1"):
        VisionEncoder(encoder_plan("siglip", feature_layer=-4))


@pytest.mark.parametrize(
    ("shape", "says"), [((1, 4, 56, 56), "convert to RGB"), ((3, 56, 56), "convert to RGB"), ((1, 3, 8, 56), "smaller than a patch")]
)
def test_images_that_cannot_be_cut_are_named(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        VisionEncoder(encoder_plan("clip"))([torch.zeros(shape)])
