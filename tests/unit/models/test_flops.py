"""`stagecoach.costs` FLOPs against a counter on the miniatures, within 1 %.

Counted with math SDPA (the counter sees nothing inside fused kernels on CPU), experts in a loop (nor inside grouped GEMM), and
documents run apart (a dense mask computes what a packed kernel skips). Causal convention: `costs` counts half of a document's square,
the counter all of it, so the attention term is doubled here.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stagecoach.contract.plan import Model
from stagecoach.costs.flops import backward_factor, connector_forward, decoder_forward, encoder_forward, head_forward
from stagecoach.recipes import recipe_function
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.moe import MoeFeedForward

DOCUMENTS = ((40, 1), (64, 2), (23, 0))  # positions, images; together one packed row


def counted(plan: Model) -> float:
    """Forward and backward of every document by itself."""
    model = build_model(plan)
    for module in model.modules():
        if isinstance(module, MoeFeedForward):
            module.math = "loop"
    size, tokens_per_image = plan.image.size, plan.connector.tokens
    total = 0
    for length, images in DOCUMENTS:
        tokens = torch.randint(0, 100, (1, length))
        slots = torch.tensor([[0, i * tokens_per_image, tokens_per_image] for i in range(images)]) if images else None
        pixels = [torch.zeros(images, 3, size, size, dtype=torch.uint8)] if images else []
        model.train(images > 0)  # without images no dummy image: it is not work of the plan
        in_place = {torch.ops.aten.addmm_: lambda _out, a, b, **_: 2 * a[0] * a[1] * b[1]}  # the loss's; the counter knows addmm only
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
            model(tokens, labels_BT=tokens, pixel_values=pixels, image_slots=slots).loss_sum.backward()
        total += counter.get_total_flops()
    return total


def stated(plan: Model) -> float:
    """The same work by the formulas."""
    images, positions = sum(n for _, n in DOCUMENTS), sum(length for length, _ in DOCUMENTS)
    squares = sum(length**2 for length, _ in DOCUMENTS)
    decoder = plan.decoder
    attention = 2 * decoder.layers * 2.0 * decoder.heads * decoder.head_dim * squares

    def passes(part: str) -> float:
        return 1 + backward_factor(plan, part)

    return (
        images * encoder_forward(plan.encoder, plan.image.size) * passes("encoder")
        + images * connector_forward(plan.connector, plan.encoder, decoder, plan.image.size) * passes("connector")
        + positions * decoder_forward(decoder) * passes("decoder")
        + attention * passes("decoder")
        + positions * head_forward(decoder) * passes("embeddings")
    )


MINIATURES = {
    "dense": lambda: recipe_function("mm1_tiny")().stages[0].model,
    "experts": lambda: recipe_function("mm1_tiny_moe")().stages[0].model,
    "frozen encoder, perceiver": lambda: recipe_function("blip3_tiny")().stages[0].model,
    "attention pool": lambda: with_connector("attention_pool"),
    "average pool": lambda: with_connector("average_pool"),
}


def with_connector(kind: str) -> Model:
    model = recipe_function("mm1_tiny")().stages[0].model
    return replace(model, connector=replace(model.connector, kind=kind, heads=4, head_dim=24))


@pytest.mark.parametrize("name", MINIATURES)
def test_flops_of_costs_equal_a_counter(name: str) -> None:
    plan = MINIATURES[name]()
    if name.startswith("frozen"):
        assert "encoder" not in plan.trainable
    assert stated(plan) == pytest.approx(counted(plan), rel=0.01)
