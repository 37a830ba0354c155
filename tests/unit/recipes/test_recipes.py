"""Recipes against the papers' numbers, as `recipes.md` states them."""

import pytest

from stagecoach.contract.plan import Parent, PipelinePlan, StagePlan
from stagecoach.contract.records import decode, encode, to_plain
from stagecoach.recipes import RECIPES, recipe_function
from stagecoach.recipes.problems import check
from stagecoach.recipes.resolve import leaves


def weights(plan: StagePlan) -> dict[str, float]:
    return {weight.dataset: weight.weight for weight in plan.data.mixture.weights}


def test_every_system_to_carry_is_there() -> None:
    mm1 = {f"mm1_{size}" for size in ("1b", "3b", "7b", "30b", "3b_moe", "7b_moe")}
    mm1_5 = {f"mm1_5_{size}" for size in ("1b", "3b", "7b", "30b", "1b_moe", "3b_moe")}
    assert set(RECIPES) == mm1 | mm1_5 | {"blip3_4b", "mm1_tiny", "mm1_tiny_moe", "mm1_5_tiny", "blip3_tiny"}


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("mm1_3b", "pretrain sft"),
        ("mm1_5_3b", "pretrain continual sft video ui"),
        ("blip3_4b", "pretrain sft interleaved dpo safety"),
    ],
)
def test_a_miniature_has_the_form_of_its_recipe(recipe: str, stages: str) -> None:
    full, tiny = recipe_function(recipe)(), recipe_function(RECIPES[recipe].miniature)()
    assert [stage.name for stage in full.stages] == [stage.name for stage in tiny.stages] == stages.split()
    for one, other in zip(full.stages, tiny.stages, strict=True):
        assert one.kind == other.kind
        assert one.model.connector.kind == other.model.connector.kind
        assert one.model.encoder.layout == other.model.encoder.layout
        assert one.model.trainable == other.model.trainable
        assert one.optimizer.kind == other.optimizer.kind
        assert (one.loss.kind, one.loss.targets) == (other.loss.kind, other.loss.targets)
        assert one.model.image.split.kind == other.model.image.split.kind
        assert one.model.image.split.overview == other.model.image.split.overview
        assert (one.model.lora is None) == (other.model.lora is None)
        assert type(one.init) is type(other.init) or one.name == "pretrain"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_survives_json_and_equals_itself(recipe: str) -> None:
    plan = recipe_function(recipe)()
    assert plan == recipe_function(recipe)()
    assert decode(PipelinePlan, encode(plan), uri="memory://plan") == plan
    for stage in plan.stages:
        assert decode(StagePlan, encode(stage), uri="memory://plan.json") == stage


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_only_errors_are_of_what_is_not_built(recipe: str) -> None:
    errors = [problem for problem in check(recipe_function(recipe)()) if problem.severity == "error"]
    assert {problem.cause for problem in errors} <= {"not_built"}
    assert {problem.path.partition(".")[0] for problem in errors} <= {"interleaved", "dpo", "safety"}
    assert bool(errors) == recipe.startswith("blip3")


@pytest.mark.parametrize("recipe", RECIPES)
def test_stages_start_from_an_earlier_one(recipe: str) -> None:
    plan = recipe_function(recipe)()
    for index, stage in enumerate(plan.stages[1:], start=1):
        assert isinstance(stage.init, Parent)
        assert stage.init.stage in [earlier.name for earlier in plan.stages[:index]]


def test_mm1_5_has_two_stages_after_sft() -> None:
    plan = recipe_function("mm1_5_3b")()
    assert {stage.name for stage in plan.stages if isinstance(stage.init, Parent) and stage.init.stage == "sft"} == {"video", "ui"}


def test_mm1_pretraining_is_the_papers() -> None:
    plan = recipe_function("mm1_3b")().stage("pretrain")
    drawn = weights(plan)
    assert drawn["interleaved"] == pytest.approx(0.45)
    assert drawn["captions"] + drawn["captions_synthetic"] == pytest.approx(0.45)
    assert drawn["captions_synthetic"] == pytest.approx(0.07 * 0.45)
    assert drawn["text"] == pytest.approx(0.10)
    assert (plan.batch.size, plan.batch.seq_len, plan.data.packing.images_per_row) == (512, 4096, 16)
    assert plan.optimizer.weight_decay == 0.1  # lambda = 0.1 eta in PyTorch's convention
    assert plan.optimizer.connector_peak_lr == 8e-5


@pytest.mark.parametrize(("recipe", "rate"), [("mm1_1b", 8.58e-5), ("mm1_3b", 6e-5), ("mm1_7b", 4e-5), ("mm1_30b", 2.2e-5)])
def test_mm1_rates_are_the_papers(recipe: str, rate: float) -> None:
    assert recipe_function(recipe)().stage("pretrain").optimizer.peak_lr == pytest.approx(rate, rel=5e-3)


def test_only_the_30b_model_has_a_z_loss() -> None:
    assert {name: recipe_function(name)().stages[0].loss.z_loss for name in ("mm1_3b", "mm1_30b")} == {"mm1_3b": 0.0, "mm1_30b": 1e-4}


def test_mm1_5_pretraining_mix_is_50_10_40() -> None:
    drawn = weights(recipe_function("mm1_5_3b")().stage("pretrain"))
    assert drawn["captions"] + drawn["captions_synthetic"] == pytest.approx(0.50)
    assert (drawn["interleaved"], drawn["text"]) == (pytest.approx(0.10), pytest.approx(0.40))


def test_mm1_5_sft_shares_reproduce_every_alpha() -> None:
    drawn = weights(recipe_function("mm1_5_3b")().stage("sft"))
    alphas = {name: drawn[f"sft_{name}"] / drawn["sft_general"] for name in ("science", "math", "code", "refer_ground", "text_rich")}
    assert alphas == {
        "science": pytest.approx(0.1, abs=0.005),
        "math": pytest.approx(0.5, abs=0.01),
        "code": pytest.approx(0.2, abs=0.01),
        "refer_ground": pytest.approx(2.0, abs=0.02),
        "text_rich": pytest.approx(3.29, abs=0.01),
    }
    assert (drawn["sft_multi_image"], drawn["sft_text"]) == (0.10, 0.10)
    assert sum(drawn.values()) == pytest.approx(1.0)


def test_blip3_ratios_are_the_papers_and_stage_2_is_renormalised() -> None:
    plan = recipe_function("blip3_4b")(edition=2025)
    first, second = weights(plan.stage("pretrain")), weights(plan.stage("continual"))
    assert first["mint_1t"] == 0.325
    assert first["mint_1t"] + first["obelics"] == pytest.approx(0.5)
    assert second["mint_1t"] == pytest.approx(32.5 / 90, abs=1e-6)
    assert second["idl"] == pytest.approx(10 / 90, abs=1e-6)
    assert sum(second.values()) == pytest.approx(1.0, abs=1e-5)


def test_blip3_editions_differ_as_the_papers_do() -> None:
    old, new = recipe_function("blip3_4b")(edition=2024), recipe_function("blip3_4b")(edition=2025)
    assert [stage.name for stage in new.stages] == ["pretrain", "continual", "sft", "interleaved"]
    assert old.stage("sft").model.image.split.max_tiles == 4
    assert new.stage("sft").model.image.split.max_tiles == 12
    assert sum(dataset.stats.samples for dataset in old.stage("sft").data.datasets) == 1_000_000
    assert sum(dataset.stats.samples for dataset in new.stage("sft").data.datasets) == 3_000_000


def test_an_expert_model_differs_from_the_dense_one_in_experts_and_layout_alone() -> None:
    for dense, sparse in (("mm1_3b", "mm1_3b_moe"), ("mm1_7b", "mm1_7b_moe"), ("mm1_5_1b", "mm1_5_1b_moe"), ("mm1_5_3b", "mm1_5_3b_moe")):
        one, other = leaves(recipe_function(dense)()), leaves(recipe_function(sparse)())
        changed = {path for path in {**one, **other} if one.get(path) != other.get(path)}
        assert changed
        assert all(".moe" in path or ".layout." in path for path in changed), changed


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["c_abstractor", "average_pool", "attention_pool", "perceiver"])
def test_every_connector_can_be_asked_for(recipe: str, kind: str) -> None:
    tokens = 16 if RECIPES[recipe].is_miniature else 64
    plan = recipe_function(recipe)(connector=kind, tokens=tokens)
    assert {(stage.model.connector.kind, stage.model.connector.tokens) for stage in plan.stages} == {(kind, tokens)}
    assert not [problem for problem in check(plan) if problem.severity == "error" and problem.cause != "not_built"]


@pytest.mark.parametrize("split", ["none", "static", "dynamic"])
@pytest.mark.parametrize("recipe", ["mm1_1b", "mm1_5_3b", "mm1_tiny", "mm1_5_tiny"])
def test_every_split_can_be_asked_for(recipe: str, split: str) -> None:
    plan = recipe_function(recipe)(split=split)
    assert plan.stage("sft").model.image.split.kind == split
    assert not [problem for problem in check(plan) if problem.severity == "error"]


@pytest.mark.parametrize(("resolution", "tokens"), [(224, 64), (224, 144), (336, 64), (336, 144)])
def test_the_ablations_grid_of_mm1_resolves(resolution: int, tokens: int) -> None:
    plan = recipe_function("mm1_1b")(resolution=resolution, tokens=tokens)
    assert plan.stage("pretrain").model.image.size == resolution
    assert not [problem for problem in check(plan) if problem.severity == "error"]


def test_the_released_fine_tuning_of_mm1_5_is_one_argument_away() -> None:
    plan = recipe_function("mm1_5_3b")(final=True)
    assert (plan.stage("sft").optimizer.peak_lr, to_plain(plan.stage("sft").duration)["steps"]) == (2e-5, 23_000)
    assert recipe_function("mm1_5_3b")().stage("sft").optimizer.peak_lr == 1e-5
