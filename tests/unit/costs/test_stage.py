"""Costs of stages: the papers' bounds, scaling laws of the formulas, and what a frozen part does not cost."""

from dataclasses import replace
from itertools import pairwise

import pytest

from stagecoach.contract.plan import DatasetStats, Epochs, StagePlan, Tokens
from stagecoach.costs import HARDWARE, advised_interval_s, stage_costs
from stagecoach.costs.flops import backward_factor, step_flops
from stagecoach.costs.load import stage_steps, step_load
from stagecoach.costs.memory import state_bytes
from stagecoach.costs.stage import full_state_gb
from stagecoach.recipes import RECIPES, recipe_function

H100 = HARDWARE["h100"]


def stage(recipe: str, name: str = "pretrain", **arguments: object) -> StagePlan:
    return recipe_function(recipe)(**arguments).stage(name)


def full_rows(plan: StagePlan) -> StagePlan:
    """Every row full of 16 images and of one document: the bound that the features page states."""
    seq_len, tokens = plan.batch.seq_len, plan.model.connector.tokens
    stats = DatasetStats(samples=10**9, text_tokens=seq_len - 16 * tokens, images=16)
    datasets = tuple(replace(dataset, stats=stats) for dataset in plan.data.datasets)
    return replace(plan, data=replace(plan.data, datasets=datasets))


BOUNDS = [("mm1_3b", 9_500), ("mm1_7b", 17_000), ("mm1_30b", 59_700), ("mm1_3b_moe", 11_300), ("mm1_7b_moe", 21_400), ("mm1_5_1b", 6_100)]


@pytest.mark.parametrize(("recipe", "bound"), BOUNDS)
def test_pretraining_stays_below_the_bound(recipe: str, bound: float) -> None:
    assert (H100.peak_flops, H100.mfu) == (989e12, 0.40)
    assert stage_costs(stage(recipe), H100).gpu_hours < bound


@pytest.mark.parametrize(("recipe", "bound"), BOUNDS)
def test_rows_full_of_images_come_out_near_the_bound(recipe: str, bound: float) -> None:
    hours = stage_costs(full_rows(stage(recipe)), H100).gpu_hours
    assert 0.85 * bound < hours < 1.02 * bound


@pytest.mark.parametrize(
    ("recipe", "gigabytes"), [("mm1_3b", 44), ("mm1_7b", 92), ("mm1_30b", 368), ("mm1_3b_moe", 775), ("mm1_7b_moe", 570)]
)
def test_state_sizes_are_the_stated_ones(recipe: str, gigabytes: float) -> None:
    costs = stage_costs(stage(recipe), H100)
    assert full_state_gb(costs.parameters) == pytest.approx(gigabytes, rel=0.03)
    assert costs.checkpoint_bytes == pytest.approx(full_state_gb(costs.parameters) * 1e9)


def test_decoder_flops_are_six_n_per_position() -> None:
    plan = stage("mm1_3b")
    costs = stage_costs(plan, H100)
    linear = costs.flops.decoder + costs.flops.head
    model_n = costs.parameters.by_part["decoder"] + costs.parameters.by_part["embeddings"]
    assert linear == pytest.approx(6 * model_n * costs.load.positions, rel=1e-3)


def test_encoder_flops_are_six_n_per_patch_and_its_attention() -> None:
    plan = stage("mm1_3b")
    encoder, load = plan.model.encoder, step_load(plan)
    attention = 12 * encoder.layers * encoder.width * 730**2
    expected = load.tiles * (6 * 631.4e6 * 730 + attention)
    assert step_flops(plan).encoder == pytest.approx(expected, rel=0.01)


def test_attention_is_causal_and_stays_inside_documents() -> None:
    plan = stage("mm1_3b")
    decoder, seq_len = plan.model.decoder, plan.batch.seq_len

    def with_documents(length: int) -> float:
        stats = DatasetStats(samples=10**9, text_tokens=length, images=0)
        datasets = tuple(replace(dataset, stats=stats) for dataset in plan.data.datasets)
        return step_flops(replace(plan, data=replace(plan.data, datasets=datasets))).attention

    one_document = plan.batch.size * decoder.layers * 3 * (4 * decoder.heads * decoder.head_dim * seq_len**2 / 2)
    assert with_documents(seq_len) == pytest.approx(one_document)
    assert with_documents(seq_len // 4) == pytest.approx(one_document / 4)
    assert with_documents(seq_len * 4) == pytest.approx(one_document)  # split over rows, which do not see each other


def test_experts_cost_what_a_token_passes() -> None:
    dense, sparse = step_flops(stage("mm1_3b")), step_flops(stage("mm1_3b_moe"))
    decoder = stage("mm1_3b").model.decoder
    extra = 13 * (3 * decoder.width * decoder.ffn_width + decoder.width * 64)
    assert sparse.per_position_forward - dense.per_position_forward == pytest.approx(2 * extra)


def test_a_frozen_encoder_has_no_backward_no_gradient_and_no_optimizer_state() -> None:
    plan = stage("blip3_4b")
    trained = replace(plan, model=replace(plan.model, trainable=("encoder", *plan.model.trainable)))
    assert backward_factor(plan.model, "encoder") == 0
    assert step_flops(trained).encoder == pytest.approx(3 * step_flops(plan).encoder)
    frozen, full = state_bytes(plan), state_bytes(trained)
    encoder = stage_costs(plan, H100).parameters.by_part["encoder"]
    assert full["optimizer"] - frozen["optimizer"] == 8 * encoder
    assert full["parameters"] - frozen["parameters"] == 2 * encoder  # kept in bf16 instead of fp32
    ranks = plan.layout.ranks // plan.layout.dp_replicate
    here, there = (stage_costs(one, H100).memory.gradients for one in (plan, trained))
    assert there - here == pytest.approx(4 * encoder / ranks)


def test_a_frozen_decoder_still_passes_gradients_to_what_is_below() -> None:
    model = replace(stage("mm1_3b").model, trainable=("connector",))
    assert [backward_factor(model, part) for part in ("encoder", "connector", "decoder", "embeddings")] == [0, 2, 1, 1]


def test_adafactor_state_is_rows_and_columns() -> None:
    plan = stage("mm1_3b", "sft")
    assert plan.optimizer.kind == "adafactor"
    assert state_bytes(plan)["optimizer"] < 0.002 * state_bytes(plan)["parameters"]


def test_memory_falls_with_recompute_ranks_and_rows() -> None:
    plan = stage("mm1_30b")
    modes = [replace(plan.layout, activation_checkpointing=mode) for mode in ("none", "selective", "full")]
    kept = [stage_costs(replace(plan, layout=layout), H100).memory.activations for layout in modes]
    assert all(more > less for more, less in pairwise(kept))
    doubled = stage_costs(replace(plan, layout=replace(plan.layout, nodes=2 * plan.layout.nodes)), H100).memory
    memory = stage_costs(plan, H100).memory
    assert doubled.optimizer == pytest.approx(memory.optimizer / 2)
    assert doubled.activations == memory.activations
    assert stage_costs(replace(plan, layout=replace(plan.layout, microbatch_rows=1)), H100).memory.activations < memory.activations
    assert memory.total == memory.parameters + memory.optimizer + memory.gradients + memory.activations


def test_selective_recompute_fits_30b_at_five_tiles_of_672() -> None:
    plan = stage("mm1_5_30b", "continual")
    assert stage_costs(plan, H100).memory.total < H100.memory_bytes * H100.usable
    selective = replace(plan, layout=replace(plan.layout, activation_checkpointing="selective"))
    assert stage_costs(selective, HARDWARE["h200"]).memory.total < HARDWARE["h200"].memory_bytes * HARDWARE["h200"].usable


def test_advised_interval_is_young_and_dalys() -> None:
    assert advised_interval_s(0.25, 7.9 * 3600) == pytest.approx(120, rel=0.01)


def test_a_gpu_fails_once_in_7_9_hours_among_1024() -> None:
    assert H100.hours_between_failures / 1024 == pytest.approx(7.9)


def test_reads_are_far_fewer_than_images() -> None:
    for recipe in ("mm1_3b", "mm1_5_3b", "blip3_4b"):
        costs = stage_costs(stage(recipe), H100)
        assert costs.requests_per_s * costs.step_time_s <= 50 * costs.load.images / 1000


def test_durations_resolve_to_steps() -> None:
    plan = stage("mm1_3b")
    assert stage_steps(plan) == 200_000
    assert stage_steps(replace(plan, duration=Tokens(tokens=512 * 4096 * 10))) == 10
    assert stage_steps(replace(plan, duration=Tokens(tokens=512 * 4096 * 10 + 1))) == 11
    sft = stage("mm1_3b", "sft")
    assert stage_steps(replace(sft, duration=Epochs(epochs=1.8))) == pytest.approx(1.8 * 1_450_000 / 256, abs=1)
    assert stage_steps(stage("mm1_5_3b", "sft")) == pytest.approx(23_000, abs=2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_is_costed_with_positive_finite_numbers(recipe: str) -> None:
    for plan in recipe_function(recipe)().stages:
        costs = stage_costs(plan, HARDWARE[plan.resources.hardware])
        for value in (costs.step_time_s, costs.gpu_hours, costs.save_time_s, costs.advised_checkpoint_interval_s, costs.input_bytes_per_s):
            assert 0 < value < float("inf")
        assert 0 < costs.load.filled <= 1
        assert costs.load.positions == round(costs.load.rows * plan.batch.seq_len)


@pytest.mark.parametrize("recipe", [name for name, entry in RECIPES.items() if entry.is_miniature])
def test_miniatures_fit_two_cores(recipe: str) -> None:
    for plan in recipe_function(recipe)().stages:
        costs = stage_costs(plan, HARDWARE["cpu"])
        assert 1e6 < costs.parameters.total < 4e6
        assert (plan.layout.nodes, plan.layout.ranks_per_node, plan.resources.hardware) == (1, 2, "cpu")
        assert costs.memory.total < 0.5e9
        assert costs.gpu_hours * 3600 / 2 < 300  # seconds on two cores at the stated rate
