"""Overrides, differences and sources."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.contract.identity import identity_hash, layout_hash
from stagecoach.contract.plan import Epochs, Parent, Steps, Tokens
from stagecoach.contract.records import canonical_json
from stagecoach.errors import ConfigError
from stagecoach.recipes import RECIPES
from stagecoach.recipes.problems import check
from stagecoach.recipes.report import exit_code, plan_json, report
from stagecoach.recipes.resolve import difference, leaves, resolve
from stagecoach.recipes.sources import GRADES, TAGS, rules_of, sources_of


def changed(*texts: str, recipe: str = "mm1_tiny") -> dict[str, object]:
    """What the settings change, by path."""
    resolved = resolve(recipe, texts)
    return {path: here for path, here, _ in difference(resolved.plan, resolved.default)}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("pretrain.optimizer.peak_lr=6e-5", "pretrain.optimizer.peak_lr", 6e-5),
        ("sft.batch.seq_len=512", "sft.batch.seq_len", 512),
        ("pretrain.steps=10", "pretrain.duration.steps", 10),
        ("pretrain.duration.steps=10", "pretrain.duration.steps", 10),
        ("pretrain.checkpoint.every_steps=7", "pretrain.checkpoint.every_steps", 7),
        ("pretrain.data.mixture.weights.captions=0.3", "pretrain.data.mixture.weights.captions.weight", 0.3),
        ("pretrain.data.mixture.weights.captions.weight=0.3", "pretrain.data.mixture.weights.captions.weight", 0.3),
        ("pretrain.data.datasets.text.stats.samples=9", "pretrain.data.datasets.text.stats.samples", 9),
        ("sft.layout.compile=true", "sft.layout.compile", True),
        ("pretrain.optimizer.connector_peak_lr=None", "pretrain.optimizer.connector_peak_lr", None),
        ("pretrain.optimizer.connector_peak_lr=null", "pretrain.optimizer.connector_peak_lr", None),
        ('sft.model.trainable=["decoder","embeddings"]', "sft.model.trainable", ["decoder", "embeddings"]),
        ("pretrain.optimizer.peak_lr=1", "pretrain.optimizer.peak_lr", 1.0),  # an integer is a number
    ],
)
def test_one_setting_changes_one_value(text: str, path: str, value: object) -> None:
    assert changed(text) == {path: value}


def test_architecture_follows_to_the_stages_that_start_from_it() -> None:
    assert changed("pretrain.model.connector.kind=perceiver") == {
        "pretrain.model.connector.kind": "perceiver",
        "sft.model.connector.kind": "perceiver",
    }
    assert changed("pretrain.model.image.size=32") == {"pretrain.model.image.size": 32}  # no weight has another shape


def test_a_fork_which_begins_with_its_own_stage_has_the_shapes_that_its_run_was_given() -> None:
    forked = ["sft.init.kind=parent", "sft.init.stage=sft", "sft.init.checkpoint=file:///there", f"sft.init.digest={'0' * 64}"]
    resolved = resolve("mm1_5_tiny", ["pretrain.model.decoder.width=192", *forked])
    widths = {stage.name: stage.model.decoder.width for stage in resolved.plan.stages}
    assert widths == dict.fromkeys(("pretrain", "continual", "sft", "video", "ui"), 192)


NOTES = 'pretrain.data.datasets.notes={"kind": "text", "uri": "file:///notes", "stats": {"samples": 9, "text_tokens": 5, "images": 0}}'


def test_a_source_can_be_added_with_its_weight_in_any_order() -> None:
    shares = ("pretrain.data.mixture.weights.notes=0.05", "pretrain.data.mixture.weights.text=0.05")
    for texts in ((NOTES, *shares), (*shares, NOTES)):
        stage = resolve("mm1_tiny", texts).plan.stage("pretrain")
        added = stage.data.datasets[-1]
        assert (added.name, added.kind, added.uri) == ("notes", "text", "file:///notes")
        assert {weight.dataset: weight.weight for weight in stage.data.mixture.weights}["notes"] == 0.05
        assert not [problem for problem in check(resolve("mm1_tiny", texts).plan) if problem.severity == "error"]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("pretrain.data.mixture.weights.notes=0.05",), "unknown key `pretrain.data.mixture.weights.notes`"),
        (('pretrain.data.datasets.notes={"uri": "file:///notes"}',), "kind"),
        (("pretrain.data.datasets.notes=file:///notes",), "unknown key `pretrain.data.datasets.notes`"),
        (("pretrain.data.datasets.txt.uri=file:///notes",), "did you mean `pretrain.data.datasets.text`"),
    ],
)
def test_a_source_that_is_only_named_is_not_added(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve("mm1_tiny", texts)


def test_copies_follow_machines() -> None:
    resolved = resolve("mm1_3b", ["pretrain.layout.nodes=2"])
    assert (resolved.plan.stages[0].layout.nodes, resolved.plan.stages[0].layout.dp_replicate) == (2, 2)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["pretrain.duration.tokens=4096"], Tokens(tokens=4096)),
        (["pretrain.duration.kind=epochs", "pretrain.duration.epochs=0.5"], Epochs(epochs=0.5)),
        (["pretrain.duration.epochs=0.5", "pretrain.duration.kind=epochs"], Epochs(epochs=0.5)),
        (['pretrain.duration={"kind":"steps","steps":3}'], Steps(steps=3)),
    ],
)
def test_a_field_of_another_shape_selects_it(texts: list[str], expected: object) -> None:
    assert resolve("mm1_tiny", texts).plan.stages[0].duration == expected


def test_a_stage_can_start_from_another() -> None:
    plan = resolve("mm1_5_tiny", ["sft.init.stage=pretrain"]).plan
    assert plan.stage("sft").init == Parent(stage="pretrain")


def test_an_optional_part_can_be_made_and_removed() -> None:
    texts = ["pretrain.model.decoder.moe.experts=4", "pretrain.model.decoder.moe.every=2"]
    plan = resolve("mm1_tiny", texts).plan
    assert all(stage.model.decoder.moe and stage.model.decoder.moe.experts == 4 for stage in plan.stages)
    plan = resolve("mm1_tiny_moe", ["pretrain.model.decoder.moe=null"]).plan
    assert all(stage.model.decoder.moe is None for stage in plan.stages)


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert changed("pretrain.steps=10", "pretrain.duration.steps=10") == {"pretrain.duration.steps": 10}


def test_hardware_holds_for_all_stages() -> None:
    assert {stage.resources.hardware for stage in resolve("mm1_3b", hardware="h200").plan.stages} == {"h200"}


def test_identity_and_layout_change_apart() -> None:
    base = resolve("mm1_tiny").plan.stages[0]
    rate = resolve("mm1_tiny", ["pretrain.optimizer.peak_lr=1e-4"]).plan.stages[0]
    nodes = resolve("mm1_tiny", ["pretrain.layout.microbatch_rows=1"]).plan.stages[0]
    assert identity_hash(rate) != identity_hash(base)
    assert layout_hash(rate) == layout_hash(base)
    assert identity_hash(nodes) == identity_hash(base)
    assert layout_hash(nodes) != layout_hash(base)


def test_difference_of_two_recipes_is_by_path() -> None:
    found = {path: (here, there) for path, here, there in difference(resolve("mm1_3b").plan, resolve("mm1_7b").plan)}
    assert found["pretrain.optimizer.peak_lr"] == (6e-5, 4e-5)
    assert "pretrain.batch.size" not in found
    assert difference(resolve("mm1_3b").plan, resolve("mm1_3b").plan) == []


EXTREMES = (
    "0",
    "1",
    "-1",
    "2",
    "7",
    "10000",
    "999999999999999",
    str(10**400),
    "1e-300",
    "1e14",
    "1e300",
    "null",
    "true",
    '"x"',
    "[1]",
    '{"kind":"x"}',
)


@settings(max_examples=400, deadline=None)
@given(
    path=st.sampled_from([*leaves(resolve("mm1_5_tiny").plan), "nowhere", "pretrain", "sft.x.y", "pretrain.model"]),
    value=st.one_of(st.sampled_from(EXTREMES), st.text(max_size=12)),
)
def test_any_setting_is_costed_and_checked_or_refused_as_asked_wrongly(path: str, value: str) -> None:
    try:
        resolved = resolve("mm1_5_tiny", [f"{path}={value}"])
    except ConfigError:
        return
    reports = report(resolved, grace_s=30.0)
    assert exit_code(reports) in (0, 1, 2)
    canonical_json(plan_json(resolved, reports))  # refuses NaN and infinity


def test_a_value_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        resolve("mm1_tiny", ["pretrain.code=" + "[" * 200_000])


# --- sources -----------------------------------------------------------------------------------------------------------------

EVERY = [(recipe, ()) for recipe in RECIPES] + [("blip3_4b", ("edition=2025",)), ("mm1_5_3b", ("final=true",)), ("mm1_1b", ("tokens=64",))]


@pytest.mark.parametrize(("recipe", "texts"), EVERY)
def test_no_value_is_without_a_source(recipe: str, texts: tuple[str, ...]) -> None:
    resolved = resolve(recipe, texts)
    found = list(sources_of(resolved))
    assert [one.path for one in found] == list(leaves(resolved.plan))
    for one in found:
        assert one.source.grade in GRADES
        assert len(one.source.where) > 8, one
        assert one.source.tag == "set" or all(part in TAGS for part in one.source.tag.split("+"))


def test_a_set_value_names_what_set_it() -> None:
    found = {one.path: one.source for one in sources_of(resolve("mm1_1b", ["connector=perceiver", "pretrain.optimizer.peak_lr=1e-4"]))}
    assert found["pretrain.optimizer.peak_lr"].where == "--set pretrain.optimizer.peak_lr=1e-4"
    assert "connector=perceiver" in found["sft.model.connector.kind"].where
    assert found["pretrain.batch.size"].tag == "S1"


@pytest.mark.parametrize(
    ("recipe", "path", "tag", "grade"),
    [
        ("mm1_3b", "pretrain.data.mixture.weights.interleaved.weight", "S1", "A"),
        ("mm1_3b", "pretrain.optimizer.connector_peak_lr", "RU", "RU"),
        ("mm1_3b", "pretrain.model.decoder.layers", "ours", "ours"),
        ("mm1_30b", "pretrain.loss.z_loss", "RU", "RU"),
        ("mm1_5_3b", "video.batch.size", "R3", "C+"),
        ("mm1_5_3b", "sft.data.mixture.weights.sft_math.weight", "L1+S2", "B"),
        ("blip3_4b", "pretrain.model.trainable", "B4+LAVIS", "A"),
        ("blip3_4b", "dpo.loss.dpo_beta", "ours", "ours"),
        ("mm1_tiny", "pretrain.model.decoder.layers", "ours", "ours"),
        ("mm1_5_7b", "pretrain.batch.size", "ours", "ours"),
        ("mm1_5_7b", "pretrain.batch.seq_len", "S1", "A"),
        ("mm1_5_7b", "pretrain.model.image.split.kind", "S1", "A"),
        ("mm1_5_7b", "sft.model.image.split.kind", "L1+R1", "B-"),
        ("mm1_3b", "sft.model.image.split.kind", "S1", "A"),
        ("mm1_3b", "sft.optimizer.kind", "N1", "B-"),
        ("mm1_3b", "sft.schedule.kind", "N1", "B-"),
        ("mm1_3b", "sft.kind", "contract", "contract"),
    ],
)
def test_a_source_is_the_right_one(recipe: str, path: str, tag: str, grade: str) -> None:
    found = {one.path: one.source for one in sources_of(resolve(recipe))}[path]
    assert (found.tag, found.grade) == (tag, grade)


def test_renormalised_ratios_say_so() -> None:
    found = {one.path: one.source for one in sources_of(resolve("blip3_4b", ["edition=2025"]))}
    ratio = found["continual.data.mixture.weights.mint_1t.weight"]
    assert (ratio.tag, ratio.grade) == ("B4+derived", "derived")
    assert "sum to 90" in ratio.where


def test_every_rule_is_the_source_of_some_value() -> None:
    unused: dict[tuple[str, str, str], bool] = {}
    for recipe, texts in EVERY:
        plan = resolve(recipe, texts).plan
        rules = rules_of(recipe, plan.family)
        for rule in rules:
            unused.setdefault(rule, True)
        for path in leaves(plan):
            unused[next(rule for rule in rules if fnmatchcase(path, rule[0]))] = False
    assert [rule for rule, never in unused.items() if never] == []
    assert all(tag and len(where) > 8 for _, tag, where in unused)
