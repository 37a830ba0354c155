"""What `check` finds beyond what one setting on the command line can break."""

from dataclasses import replace

import pytest

from stagecoach.contract.plan import Lora, PipelinePlan, StagePlan, Weight
from stagecoach.recipes import recipe_function
from stagecoach.recipes.problems import Problem, check
from stagecoach.recipes.report import exit_code, report
from stagecoach.recipes.resolve import Resolved, resolve


def with_stage(plan: PipelinePlan, changed: StagePlan) -> PipelinePlan:
    return replace(plan, stages=tuple(changed if stage.name == changed.name else stage for stage in plan.stages))


def problems(plan: PipelinePlan, stage: str = "pretrain") -> dict[str, Problem]:
    return {problem.path.partition(".")[2]: problem for problem in check(plan) if problem.path.startswith(f"{stage}.")}


def test_a_dataset_named_twice_or_never_drawn_is_told() -> None:
    plan = recipe_function("mm1_tiny")()
    stage = plan.stages[0]
    data = stage.data
    twice = replace(stage, data=replace(data, datasets=(*data.datasets, data.datasets[0])))
    assert problems(with_stage(plan, twice))["data.datasets.captions"].severity == "error"
    shares = (Weight(dataset="captions", weight=0.5), Weight(dataset="text", weight=0.5))
    idle = replace(stage, data=replace(data, mixture=replace(data.mixture, weights=shares)))
    assert problems(with_stage(plan, idle))["data.datasets.interleaved"].severity == "warning"
    doubled = replace(stage, data=replace(data, mixture=replace(data.mixture, weights=(shares[0], shares[0]))))
    assert problems(with_stage(plan, doubled))["data.mixture.weights.captions"].says == "has two weights"


@pytest.mark.parametrize("recipe", ["mm1_3b", "mm1_5_3b", "blip3_4b"])
def test_weights_named_on_hugging_face_are_something_to_do_before_a_run_and_no_error(recipe: str) -> None:
    plan = recipe_function(recipe)()
    found = problems(plan)["init.encoder"]
    assert found.severity == "warning"
    assert found.says.startswith("hf://")
    assert "--set pretrain.init.encoder=URI" in found.do
    assert exit_code(report(resolve(recipe), grace_s=30)) == exit_code(report(mirrored(recipe), grace_s=30))
    stage = replace(plan.stages[0], init=replace(plan.stages[0].init, encoder="s3://bucket/weights/encoder"))
    assert "init.encoder" not in problems(with_stage(plan, stage))


def mirrored(recipe: str) -> Resolved:
    return resolve(recipe, ("pretrain.init.encoder=s3://bucket/e", "pretrain.init.decoder=s3://bucket/d"))


@pytest.mark.parametrize(
    ("suites", "says"),
    [
        ('["generl"]', "'generl' is not a suite that can be asked; did you mean `general`?"),
        ('["general", "VQA-v2"]', "'VQA-v2' is not a suite that can be asked; did you mean `vqav2`?"),
        ('["general+text"]', "'general+text' is several suites in one entry"),
    ],
)
def test_a_suite_that_is_none_is_refused_before_a_training_with_its_path_and_the_nearest_name(suites: str, says: str) -> None:
    found = problems(resolve("mm1_tiny", (f"sft.evaluation.suites={suites}",)).plan, "sft")["evaluation.suites"]
    assert (found.severity, found.says) == ("error", says)


def test_a_published_suite_is_no_error() -> None:
    assert "evaluation.suites" not in problems(resolve("mm1_tiny", ('sft.evaluation.suites=["vqav2", "general"]',)).plan, "sft")


def test_nothing_trained_is_an_error() -> None:
    plan = recipe_function("mm1_tiny")()
    frozen = replace(plan.stages[0], model=replace(plan.stages[0].model, trainable=()))
    assert problems(with_stage(plan, frozen))["model.trainable"].severity == "error"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"layout": {"tp": 2}}, "layout.tp"),
        ({"layout": {"ep": 2}}, "layout.ep"),
        ({"model": {"lora": Lora(rank=4, alpha=8.0)}}, "model.lora"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, dict[str, object]], path: str) -> None:
    plan = recipe_function("mm1_tiny_moe")()
    stage = plan.stages[0]
    for field, inner in change.items():
        stage = replace(stage, **{field: replace(getattr(stage, field), **inner)})
    found = [problem for problem in check(with_stage(plan, stage)) if problem.path == f"pretrain.{path}"]
    assert "not_built" in {problem.cause for problem in found}


def test_the_remedy_for_too_little_memory_makes_it_fit() -> None:
    plan = recipe_function("mm1_30b")()
    stage = replace(plan.stages[0], layout=replace(plan.stages[0].layout, nodes=8, activation_checkpointing="selective"))
    broken = with_stage(plan, stage)
    found = problems(broken)["layout"]
    assert found.cause == "memory"
    assert found.do == "--set pretrain.layout.activation_checkpointing=full"
    mended = replace(stage, layout=replace(stage.layout, activation_checkpointing="full"))
    assert "layout" not in problems(with_stage(plan, mended))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_30b_is_warned_below_four_rows_a_microstep_without_copies(rows: int) -> None:
    plan = recipe_function("mm1_30b")()
    stage = replace(plan.stages[0], layout=replace(plan.stages[0].layout, microbatch_rows=rows))
    assert ("layout.microbatch_rows" in problems(with_stage(plan, stage))) == (rows < 4)


def test_saves_that_overlap_and_saves_too_seldom_are_warned() -> None:
    plan = recipe_function("mm1_3b")()
    stage = plan.stages[0]
    for every, word in ((1, "steps would wait"), (2000, "advised are")):
        changed = replace(stage, checkpoint=replace(stage.checkpoint, every_steps=every, keep_every_steps=None))
        found = problems(with_stage(plan, changed))["checkpoint.every_steps"]
        assert found.severity == "warning"
        assert word in found.says


def test_a_frozen_part_may_thaw_but_a_vocabulary_may_not_change() -> None:
    plan = recipe_function("mm1_tiny")()
    sft = plan.stage("sft")
    thawed = replace(sft, model=replace(sft.model, trainable=("decoder",)))
    assert not problems(with_stage(plan, thawed), "sft")
    grown = replace(sft, model=replace(sft.model, decoder=replace(sft.model.decoder, added_tokens=9)))
    assert problems(with_stage(plan, grown), "sft")["model.decoder.added_tokens"].severity == "error"
