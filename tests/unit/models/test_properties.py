"""What training relies on: packing, padding, order and the way of running change nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stagecoach.contract.plan import Image, Lora, Model, Moe, RopeScaling
from stagecoach.errors import DataError
from stagecoach_workloads.models.attention import build_row_mask
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.loss import IGNORE_INDEX
from stagecoach_workloads.models.multimodal import MultimodalModel

C = 4  # positions of one image
KINDS = ["c_abstractor", "average_pool", "attention_pool", "perceiver"]


def lively(plan: Model) -> MultimodalModel:
    """A model whose every part matters: first weights are so small that attention is nearly even."""
    model = build_model(plan, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def document(length: int, image_at: int | None = None) -> dict[str, Any]:
    """One document as a row of its own, with or without an image."""
    tokens = torch.randint(0, 60, (1, length))
    labels = torch.randint(0, 60, (1, length))
    found: dict[str, Any] = {"tokens_BT": tokens, "labels_BT": labels}
    if image_at is not None:
        labels[0, image_at : image_at + C] = IGNORE_INDEX
        found["pixel_values"] = [torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)]
        found["image_slots"] = torch.tensor([[0, image_at, C]])
    return found


def packed(documents: list[dict[str, Any]], padding: int = 0) -> dict[str, Any]:
    """The documents in one row, then padding."""
    lengths = [d["tokens_BT"].shape[1] for d in documents]
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    ids = [torch.full((1, n), i) for i, n in enumerate(lengths)] + [torch.full((1, padding), -1)]
    row: dict[str, Any] = {
        "tokens_BT": torch.cat([d["tokens_BT"] for d in documents] + [torch.randint(0, 60, (1, padding))], 1),
        "labels_BT": torch.cat([d["labels_BT"] for d in documents] + [torch.full((1, padding), IGNORE_INDEX)], 1),
        "document_ids_BT": torch.cat(ids, 1),
        "positions_BT": torch.cat([torch.arange(n)[None] for n in [*lengths, padding]], 1),
    }
    with_images = [(d, begin) for d, begin in zip(documents, begins, strict=True) if "image_slots" in d]
    if with_images:
        row["pixel_values"] = [torch.cat([d["pixel_values"][0] for d, _ in with_images])]
        row["image_slots"] = torch.cat([d["image_slots"] + torch.tensor([0, begin, 0]) for d, begin in with_images])
    return row


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def run(model: MultimodalModel, batch: dict[str, Any], over: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of loss / over."""
    logits = model(**batch, want="logits").logits_BTV.detach()
    (model(**batch).loss_sum / over).backward()
    return logits, gradients(model)


LONGROPE = RopeScaling(kind="longrope", original_max_positions=10, short_factors=(1.0, 1.5, 2.0, 2.5), long_factors=(4.0, 5.0, 6.0, 7.0))


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}, {"rope_scaling": LONGROPE}])  # of 11 and 9, one outgrows 10
def test_two_documents_in_a_row_equal_the_two_apart(changes: dict[str, Any], tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    model = lively(replace(plan, decoder=replace(plan.decoder, **changes)))
    first, second = document(11, image_at=3), document(9, image_at=2)
    row = packed([first, second], padding=6)
    logits, together = run(model, row, 20)
    alone = [packed([d]) for d in (first, second)]
    logits_apart = [model(**d, want="logits").logits_BTV.detach() for d in alone]
    sum(model(**d).loss_sum / 20 for d in alone).backward()  # type: ignore[union-attr]
    apart = gradients(model)
    assert (logits[:, :11] - logits_apart[0]).abs().max() < 1e-5
    assert (logits[:, 11:20] - logits_apart[1]).abs().max() < 1e-5
    assert together.keys() == apart.keys() == {name for name, _ in model.named_parameters()}
    assert all((together[name] - apart[name]).abs().max() < 1e-4 for name in together)


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), padding=st.integers(0, 5))
def test_any_packing_equals_the_documents_apart(lengths: list[int], padding: int, tiny_model: Callable[..., Model]) -> None:
    torch.manual_seed(sum(lengths))
    model = lively(tiny_model()).eval()
    documents = [document(n, image_at=n - C if n > C else None) for n in lengths]
    with torch.no_grad():
        logits = model(**packed(documents, padding), want="logits").logits_BTV[0]
        alone = torch.cat([model(**d, want="logits").logits_BTV[0] for d in documents])
    assert (logits[: sum(lengths)] - alone).abs().max() < 1e-5


def test_padding_changes_nothing_also_with_experts(tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    for moe in (None, Moe(experts=4, every=2), Moe(experts=4, every=1, capacity_factor=0.7)):
        model = lively(replace(plan, decoder=replace(plan.decoder, moe=moe)))
        documents = [document(8, image_at=1), document(5)]
        bare, padded = (run(model, packed(documents, padding), 13) for padding in (0, 7))
        assert (bare[0] - padded[0][:, :13]).abs().max() < 1e-5
        assert all((bare[1][name] - padded[1][name]).abs().max() < 1e-4 for name in bare[1])


def test_permuting_images_with_their_slots_changes_nothing(tiny_model: Callable[..., Model]) -> None:
    model = lively(tiny_model())
    row = packed([document(8, image_at=1), document(9, image_at=3), document(7, image_at=0)])
    order = torch.tensor([2, 0, 1])
    permuted = {**row, "pixel_values": [row["pixel_values"][0][order]], "image_slots": row["image_slots"][order]}
    expected, actual = run(model, row, 24), run(model, permuted, 24)
    assert (expected[0] - actual[0]).abs().max() < 1e-5
    assert all((expected[1][name] - actual[1][name]).abs().max() < 1e-5 for name in expected[1])
    swapped = {**row, "pixel_values": permuted["pixel_values"]}
    assert (model(**swapped, want="logits").logits_BTV - expected[0]).abs().max() > 1e-3  # images do matter


@pytest.mark.parametrize("kind", KINDS)
def test_several_resolutions_in_a_batch_equal_each_alone(kind: str, tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    model = lively(replace(plan, connector=replace(plan.connector, kind=kind)))
    tokens = torch.randint(0, 60, (2, 10))
    small, large = (torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8) for side in (16, 32))
    both = model(tokens, pixel_values=[large, small], image_slots=torch.tensor([[1, 2, C], [0, 5, C]]), want="logits").logits_BTV
    first = model(tokens[:1], pixel_values=[small], image_slots=torch.tensor([[0, 5, C]]), want="logits").logits_BTV
    second = model(tokens[1:], pixel_values=[large], image_slots=torch.tensor([[0, 2, C]]), want="logits").logits_BTV
    assert (both - torch.cat((first, second))).abs().max() < 1e-5


def test_a_batch_without_images_still_runs_encoder_and_connector(tiny_model: Callable[..., Model]) -> None:
    model = lively(tiny_model())
    entered: list[str] = []
    for name in ("encoder", "connector"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: entered.append(name))
    row = document(7)
    loss = model(**row).loss_sum
    loss.backward()
    assert entered == ["encoder", "connector"]
    grads = gradients(model)
    assert all(not grads[name].any() for name in grads if name.startswith(("encoder", "connector")))
    assert {name for name, _ in model.named_parameters()} == set(grads)
    assert torch.equal(model.eval()(**row).loss_sum, loss)
    assert entered == ["encoder", "connector"]  # nothing to keep in step with when not training


def test_log_probs_sum_to_the_loss_and_router_losses_are_weighted_by_targets(tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    model = lively(replace(plan, decoder=replace(plan.decoder, moe=Moe(experts=4, every=2))))
    batch = packed([document(9, image_at=2), document(6)], padding=3)
    out, scored = model(**batch), model(**batch, want="log_probs")
    assert (out.cross_entropy_sum + scored.log_probs_BT.sum()).abs() < 1e-4
    assert out.num_targets == (batch["labels_BT"] != IGNORE_INDEX).sum()
    auxiliary = 0.01 * out.router.load_balance + 0.001 * out.router.router_z
    assert (out.loss_sum - out.cross_entropy_sum - out.num_targets * auxiliary).abs() < 1e-4
    model.z_loss = 1e-2
    squares = model(**batch, want="logits").logits_BTV.logsumexp(-1).square()[batch["labels_BT"] != IGNORE_INDEX].sum()
    assert (model(**batch).loss_sum - out.loss_sum - 1e-2 * squares).abs() < 1e-3
    with pytest.raises(DataError, match="want='loss' needs labels_BT"):
        model(batch["tokens_BT"])


def test_padding_patches_are_hidden_from_the_perceiver(tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model()
    plan = replace(plan, connector=replace(plan.connector, kind="perceiver"), image=Image(size=16, mask_padding=True))
    model = lively(plan)
    captured: list[Any] = []
    model.connector.register_forward_pre_hook(lambda _module, args: captured.append(args[2]))
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    regions = torch.tensor([[0, 0, 16, 16], [5, 0, 12, 16]])  # rows 5 to 11: patches 1 and 2 of 4
    tokens, slots = torch.randint(0, 60, (1, 12)), torch.tensor([[0, 0, C], [0, 5, C]])
    model(tokens, pixel_values=[pixels], image_slots=slots, image_regions=regions, want="logits")
    seen = captured[0][0]
    assert seen[0].all()
    assert seen[1].view(4, 4).all(1).tolist() == [False, True, True, False]


# --- ways of running --------------------------------------------------------------------------------------------------------


def whole_batch() -> dict[str, Any]:
    return packed([document(10, image_at=2), document(6)], padding=4)


VARIANTS: dict[str, Callable[[Model], Model]] = {
    **{kind: (lambda plan, kind=kind: replace(plan, connector=replace(plan.connector, kind=kind))) for kind in KINDS},
    "siglip": lambda plan: replace(plan, encoder=replace(plan.encoder, layout="siglip")),
    "experts": lambda plan: replace(plan, decoder=replace(plan.decoder, moe=Moe(experts=4, every=2))),
    "experts with capacity": lambda plan: replace(plan, decoder=replace(plan.decoder, moe=Moe(experts=4, every=2, capacity_factor=1.0))),
    "longrope": lambda plan: replace(plan, decoder=replace(plan.decoder, rope_scaling=LONGROPE)),
    "adapters in a window": lambda plan: replace(
        plan, decoder=replace(plan.decoder, sliding_window=5), lora=Lora(rank=2, alpha=4.0, targets=("q", "v", "down"))
    ),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks at it while it traces
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_and_compile_give_equal_results(variant: str, tiny_model: Callable[..., Model]) -> None:
    model, batch = lively(VARIANTS[variant](tiny_model())), whole_batch()
    expected = run(model, batch, 16)
    assert expected[1]  # something trains
    blocks = [model.connector] if variant in KINDS else [*model.encoder.blocks, *model.decoder.blocks]
    plain = [block.forward for block in blocks]
    for block, forward in zip(blocks, plain, strict=True):
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    assert_same(run(model, batch, 16), expected)
    torch.compiler.reset()
    for block, forward in zip(blocks, plain, strict=True):
        block.forward = torch.compile(forward, backend="aot_eager")
    assert_same(run(model, batch, 16), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_packed_batches_of_different_documents_compile_once(tiny_model: Callable[..., Model]) -> None:
    torch.compiler.reset()
    model, graphs = lively(tiny_model()).decoder, 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=count)
    after_first = None
    for _ in range(12):
        ids = (torch.rand(2, 32) < 0.2).cumsum(1)
        ids[0, -3:] = -1
        mask = build_row_mask(ids, length=32)
        model(torch.randn(2, 32, 32), torch.arange(32).expand(2, 32), mask)
        after_first = after_first or graphs
    assert graphs - after_first <= 2


def assert_same(actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert (actual[0] - expected[0]).abs().max() < 1e-5
    assert actual[1].keys() == expected[1].keys()
    assert all((actual[1][name] - grad).abs().max() < 1e-5 for name, grad in expected[1].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_is_close_to_fp32(variant: str, tiny_model: Callable[..., Model]) -> None:
    model, batch = lively(VARIANTS[variant](tiny_model())), whole_batch()
    exact = model(**batch).loss_sum
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(**batch).loss_sum
        autocast.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    halved = model.bfloat16()(**batch).loss_sum
    assert abs(autocast / exact - 1) < 0.02
    assert abs(halved / exact - 1) < 0.02
    assert autocast.dtype == halved.dtype == torch.float32


# --- bad input --------------------------------------------------------------------------------------------------------------


def test_mismatches_name_the_sample(tiny_model: Callable[..., Model]) -> None:
    model = lively(tiny_model())
    model.image_token = 61
    tokens = torch.randint(0, 60, (2, 10))
    tokens[1, 2:6] = 61
    good = {"pixel_values": [torch.zeros(1, 3, 16, 16, dtype=torch.uint8)], "image_slots": torch.tensor([[1, 2, C]])}
    ids = [["cats/17"], ["dogs/4", "dogs/5"]]
    model(tokens, **good, sample_ids=ids, want="hidden")
    bad: list[tuple[Tensor, dict[str, Any], str]] = [
        (tokens.index_fill(1, torch.tensor([5]), 0), good, r"row 1 \(sample dogs/4, dogs/5\): 3 image tokens"),
        (torch.randint(0, 60, (2, 10)), good, r"row 1 .*: 0 image tokens \(id 61\) but images for 4 positions, first different at 2"),
        (tokens, {}, "row 1 .*: 4 image tokens .* but images for 0 positions"),
    ]
    for wrong, images, says in bad:
        with pytest.raises(DataError, match=says):
            model(wrong, **images, sample_ids=ids, want="hidden")
    model.image_token = None
    others: list[tuple[dict[str, Any], str]] = [
        (
            {**good, "image_slots": torch.tensor([[1, 2, 3]])},
            "row 1 .*: a slot of 3 positions at 2, but the connector makes 4",
        ),
        ({**good, "image_slots": torch.tensor([[0, 8, C]])}, r"row 0 \(sample cats/17\): an image at positions 8 to 12 of a row of 10"),
        ({**good, "image_slots": torch.tensor([[2, 0, C]])}, "names row 2 of 2"),
        ({**good, "image_slots": torch.tensor([[0, 0, C], [1, 0, C]])}, "2 image slots for 1 images"),
        ({"pixel_values": good["pixel_values"]}, "1 images but no image_slots"),
        ({"image_slots": good["image_slots"]}, "1 image slots but no image"),
        ({**good, "pixel_values": [torch.zeros(1, 3, 16, 16, dtype=torch.int32)]}, "pixel_values of type torch.int32; give uint8"),
        ({**good, "pixel_values": [torch.zeros(1, 1, 16, 16, dtype=torch.uint8)]}, "convert to RGB"),
    ]
    for images, says in others:
        with pytest.raises(DataError, match=says):
            model(tokens, **images, sample_ids=ids, want="hidden")
    overlapping = {"pixel_values": [torch.zeros(2, 3, 16, 16, dtype=torch.uint8)], "image_slots": torch.tensor([[0, 0, C], [0, 3, C]])}
    with pytest.raises(DataError, match=r"row 0 \(sample cats/17\): two images share position 3"):
        model(tokens, **overlapping, sample_ids=ids, want="hidden")
