"""`stagecoach recipes` and `stagecoach plan`: what scripts read from them."""

import json

import pytest

from stagecoach.cli import run
from stagecoach.recipes import RECIPES

PROMISED = {
    "identity", "steps", "parameters", "tokens_per_step", "images_per_step", "flops_per_step", "memory_per_gpu", "step_time_s", "gpu_hours",
    "input_bytes_per_s", "requests_per_s", "checkpoint_bytes", "save_time_s", "advised_checkpoint_interval_s", "problems",
}  # fmt: skip
PLAN = {
    "name", "kind", "init", "duration", "batch", "model", "data", "optimizer", "schedule", "loss", "layout", "checkpoint", "evaluation",
    "resources",
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert run(list(arguments)) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_json_has_every_promised_key(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(printed(capsys, "plan", recipe, "--json", status=int(recipe.startswith("blip3"))))
    assert report["name"] == recipe
    for stage in report["stages"]:
        assert set(stage) >= PROMISED | PLAN | {"layout_hash"}
        assert set(stage["parameters"]) >= {"total", "active", "trainable"}
        assert set(stage["memory_per_gpu"]) == {"parameters", "optimizer", "gradients", "activations", "total"}
        assert len(stage["identity"]) == len(stage["layout_hash"]) == 64


def test_recipes_json_lists_all_with_their_miniature(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {entry["name"]: entry for entry in json.loads(printed(capsys, "recipes", "--json"))}
    assert set(listed) == set(RECIPES)
    assert listed["mm1_3b_moe"]["miniature"] == "mm1_tiny_moe"
    assert listed["mm1_5_3b"]["stages"] == ["pretrain", "continual", "sft", "video", "ui"]
    assert {entry["family"] for entry in listed.values()} == {"mm1", "mm1_5", "blip3"}


def test_tables_name_every_stage_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(capsys, "recipes")
    assert all(name in table for name in RECIPES)
    table = printed(capsys, "plan", "mm1_5_3b")
    assert all(stage in table for stage in ("pretrain", "continual", "sft", "video", "ui", "step time", "h100 at 40% MFU"))


def test_hardware_changes_memory_but_not_identity(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = (json.loads(printed(capsys, "plan", "mm1_3b", "--json", *extra))["stages"][0] for extra in ([], ["--hardware", "h200"]))
    assert (small["hardware"], large["hardware"]) == ("h100", "h200")
    assert small["identity"] == large["identity"]
    assert small["layout_hash"] != large["layout_hash"]


def test_diff_shows_what_was_set(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "plan", "mm1_3b", "--set", "pretrain.optimizer.peak_lr=1e-4", "--diff", "mm1_3b", "--json")
    assert json.loads(out)["differences"] == [{"path": "pretrain.optimizer.peak_lr", "here": 1e-4, "there": 6e-5}]
    table = printed(capsys, "plan", "mm1_3b", "--diff", "mm1_7b")
    assert "pretrain.optimizer.peak_lr" in table
    entries = json.loads(printed(capsys, "plan", "mm1_3b", "--diff", "mm1_3b_moe", "--json"))["differences"]
    assert {"path": "pretrain.model.decoder.moe", "here": None} in entries


def test_sources_json_has_a_grade_for_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "plan", "mm1_30b", "--sources", "--json"))
    by_path = {value["path"]: value for value in found["values"]}
    assert by_path["pretrain.loss.z_loss"]["grade"] == "RU"
    assert by_path["pretrain.model.decoder.layers"]["grade"] == "ours"
    assert all(value["grade"] and value["where"] for value in found["values"])
    assert "pretrain.loss.z_loss" in printed(capsys, "plan", "mm1_30b", "--sources")


def test_followed_settings_are_narrated_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "mm1_tiny", "--set", "pretrain.model.connector.kind=perceiver"]) == 0
    captured = capsys.readouterr()
    assert "sft.model.connector.kind follows" in captured.err
    assert "follows" not in captured.out
