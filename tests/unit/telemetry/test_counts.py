"""FLOPs of real batches, against a counter on the miniatures and against the formulas of `stagecoach plan`."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stagecoach.contract.plan import StagePlan
from stagecoach.costs.flops import step_flops, work_flops
from stagecoach.costs.load import step_load
from stagecoach.recipes import recipe_function
from stagecoach_workloads.data.work.collate import Batch
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.telemetry.counts import count_tokens, document_lengths, flops_of, work_of

Document = tuple[int, int]  # positions, images
ROWS: tuple[tuple[Document, ...], ...] = (((40, 1), (24, 0)), ((64, 2),))  # two rows of 64 positions
FEW: tuple[tuple[Document, ...], ...] = (((40, 1), (8, 0)),)
TEXT: tuple[tuple[Document, ...], ...] = (((20, 0), (12, 0)),)


def build_batch(plan: StagePlan, rows: tuple[tuple[Document, ...], ...], *, padding: int = 0) -> Batch:
    length = sum(positions for positions, _ in rows[0]) + padding
    ids_BT = torch.full((len(rows), length), -1)
    for row, documents in enumerate(rows):
        at = 0
        for number, (positions, _) in enumerate(documents):
            ids_BT[row, at : at + positions] = number
            at += positions
    images, size = sum(count for documents in rows for _, count in documents), plan.model.image.size
    return Batch(
        tokens_BT=torch.zeros_like(ids_BT), labels_BT=torch.zeros_like(ids_BT),
        document_ids_BT=ids_BT, positions_BT=torch.zeros_like(ids_BT),
        pixel_values=[torch.zeros(images, 3, size, size, dtype=torch.uint8)] if images else [], image_slots=torch.zeros(images, 3),
        image_regions=torch.zeros(images, 4), pairs_P3=torch.zeros(0, 3), num_targets=1, num_images=images, sample_ids=[],
    )  # fmt: skip


def counted(plan: StagePlan, rows: tuple[tuple[Document, ...], ...]) -> float:
    """torch's counter over every document by itself, forward and backward: a dense mask would compute what a packed kernel skips."""
    model = build_model(plan.model)
    size, tokens_per_image = plan.model.image.size, plan.model.connector.tokens
    total = 0
    for length, images in (document for documents in rows for document in documents):
        tokens = torch.randint(0, 100, (1, length))
        slots = torch.tensor([[0, i * tokens_per_image, tokens_per_image] for i in range(images)]) if images else None
        pixels = [torch.zeros(images, 3, size, size, dtype=torch.uint8)] if images else []
        model.train(images > 0)  # without images no dummy image: it is not work of the batch
        in_place = {torch.ops.aten.addmm_: lambda _out, a, b, **_: 2 * a[0] * a[1] * b[1]}  # the loss's; the counter knows addmm only
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
            model(tokens, labels_BT=tokens, pixel_values=pixels, image_slots=slots).loss_sum.backward()
        total += counter.get_total_flops()
    return total


@pytest.mark.parametrize(("recipe", "rows"), [("mm1_tiny", FEW), ("mm1_tiny", TEXT), ("blip3_tiny", FEW)])
def test_flops_of_a_batch_equal_a_counter(recipe: str, rows: tuple[tuple[Document, ...], ...]) -> None:
    """Packed, text-only, and with a frozen encoder, on whole miniatures.

    The counter knows no causal half, so the quadratic part is added once more."""
    plan = recipe_function(recipe)().stages[0]
    assert ("encoder" in plan.model.trainable) == (recipe == "mm1_tiny")
    batch = build_batch(plan, rows)
    causal_half = work_flops(plan, work_of(batch)).attention
    assert flops_of(plan)([batch]) + causal_half == pytest.approx(counted(plan, rows), rel=0.01)


@pytest.mark.parametrize("recipe", ["mm1_tiny", "mm1_3b", "blip3_tiny", "mm1_3b_moe"])
def test_a_batch_of_the_planned_load_costs_what_the_plan_says(recipe: str) -> None:
    plan = recipe_function(recipe)().stages[0]
    load, size = step_load(plan), plan.model.image.size
    planned = step_flops(plan)
    work = work_of(build_batch(plan, ROWS))
    tiles = round(load.tiles)
    found = work_flops(plan, replace(work, images=((tiles, (size, size)),), positions=load.positions, documents=(10,)))
    assert found.encoder + found.connector == pytest.approx((planned.encoder + planned.connector) * tiles / load.tiles)
    assert found.decoder + found.head == pytest.approx(planned.decoder + planned.head)
    assert found.attention == pytest.approx(planned.attention * 10**2 / load.square_positions)


def test_padding_is_computed_but_attends_to_nothing_and_is_no_token() -> None:
    plan = recipe_function("mm1_tiny")().stages[0]
    packed, padded = build_batch(plan, ROWS), build_batch(plan, ROWS, padding=64)
    assert (count_tokens(packed), count_tokens(padded)) == (128, 128)
    one, two = work_flops(plan, work_of(packed)), work_flops(plan, work_of(padded))
    assert (two.attention, two.encoder) == (one.attention, one.encoder)
    assert two.decoder == 2 * one.decoder
    assert document_lengths(padded.document_ids_BT) == [40, 24, 64]


def test_a_document_longer_than_the_sliding_window_costs_the_window() -> None:
    plan = recipe_function("mm1_tiny")().stages[0]
    windowed = replace(plan, model=replace(plan.model, decoder=replace(plan.model.decoder, sliding_window=16)))
    work = work_of(build_batch(plan, ROWS))
    one_by_one = sum(2 * min(position - 0.5, 16) for length in work.documents for position in range(1, length + 1))
    per_square = work_flops(plan, work).attention / sum(length**2 for length in work.documents)
    assert work_flops(windowed, work).attention == pytest.approx(per_square * one_by_one)
