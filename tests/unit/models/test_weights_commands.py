"""`stagecoach weights`, and what else fills a model from folders: results, and what is wrong is named without a traceback."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from stagecoach.cli.plan import plan_command
from stagecoach.contract.plan import Model, Pretrained, StagePlan
from stagecoach.contract.records import encode, to_plain
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.recipes import recipe_function
from stagecoach_workloads.cli.weights import weights_group
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.weights.commands import read_plan
from stagecoach_workloads.weights.importing import import_pretrained, load_model


def test_import_export_and_inspect_from_the_command_line(
    tiny_model: Callable[..., Model], decoder_folder: Path, tmp_path: Path, write_tokenizer: Callable[[Path, int], Path]
) -> None:
    plan = tiny_model()
    stage = replace(recipe_function("mm1_tiny")().stages[0], model=plan)
    assert isinstance(stage, StagePlan)
    (tmp_path / "plan.json").write_bytes(encode(stage))
    write_tokenizer(decoder_folder, 62)
    run = CliRunner().invoke(
        weights_group,
        ["import", str(tmp_path / "plan.json"), str(tmp_path / "start"), "--decoder", str(decoder_folder)],
        catch_exceptions=False,
    )
    assert run.exit_code == 0
    assert run.stdout.strip() == str(tmp_path / "start")
    assert "decoder: embed.weight grew by 2 rows" in run.stderr
    model = load_model(str(tmp_path / "start"))
    expected = load_file(decoder_folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.decoder.embed.weight[:61], expected)
    export = ["export", str(tmp_path / "start"), str(tmp_path / "hf2"), "--part", "decoder"]
    assert CliRunner().invoke(weights_group, export, catch_exceptions=False).exit_code == 0
    copy = ["export", str(tmp_path / "start"), str(tmp_path / "copy"), "--name", "again"]
    assert CliRunner().invoke(weights_group, copy, catch_exceptions=False).exit_code == 0
    assert "# again" in (tmp_path / "copy" / "README.md").read_text()
    seen = json.loads(CliRunner().invoke(weights_group, ["inspect", str(tmp_path / "hf2"), "--json"], catch_exceptions=False).stdout)
    assert seen["layout"] == "llama"
    assert seen["decoder"]["vocab_size"] == 63
    assert seen["tokenizer_size"] == 62
    whole = json.loads(CliRunner().invoke(weights_group, ["inspect", str(tmp_path / "copy"), "--json"], catch_exceptions=False).stdout)
    assert whole["model"] == to_plain(plan)
    assert whole["parameters"] == sum(p.numel() for p in model.parameters())
    text = CliRunner().invoke(weights_group, ["inspect", str(tmp_path / "hf2")], catch_exceptions=False).stdout
    assert "layout: llama" in text


def test_import_reads_what_plan_prints(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    printed = CliRunner().invoke(plan_command, ["mm1_tiny", "--json"], catch_exceptions=False).stdout
    (tmp_path / "plan.json").write_text(printed)
    stages = {stage.name: stage.model for stage in recipe_function("mm1_tiny")().stages}
    for stage, model in stages.items():
        assert read_plan(str(tmp_path / "plan.json"), stage) == (model, "mm1_tiny")
    assert read_plan(str(tmp_path / "plan.json"), None)[0] == next(iter(stages.values()))
    (tmp_path / "pipeline.json").write_bytes(encode(recipe_function("mm1_tiny")()))
    assert read_plan(str(tmp_path / "pipeline.json"), "sft") == (stages["sft"], "mm1_tiny")
    (tmp_path / "stage.json").write_bytes(encode(recipe_function("mm1_tiny")().stages[1]))
    assert read_plan(str(tmp_path / "stage.json"), None) == read_plan(str(tmp_path / "stage.json"), "sft") == (stages["sft"], "sft")
    with pytest.raises(ConfigError, match="is the plan of stage `sft` alone, not of `pretrain`; leave --stage out"):
        read_plan(str(tmp_path / "stage.json"), "pretrain")
    with pytest.raises(ConfigError, match="mm1_tiny has no stage `stf`; did you mean"):
        read_plan(str(tmp_path / "plan.json"), "stf")


@pytest.mark.parametrize(
    "body",
    ["no JSON", "[1]", '{"format": "other/1"}', '{"format": "stagecoach.plan/1"}', '{"format": "stagecoach.plan/99"}', "{}",
     '{"format": "stagecoach.plan-report/1", "name": "x", "stages": []}', '{"format": "stagecoach.plan-report/1", "stages": [{"name": 1}]}',
     '{"format": "stagecoach.plan-report/1", "name": "x", "stages": [{"name": "a", "model": {}}]}'],
)  # fmt: skip
def test_a_file_that_is_no_plan_was_asked_wrongly(body: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(body)
    error = CliRunner().invoke(weights_group, ["import", str(tmp_path / "plan.json"), str(tmp_path / "out")]).exception
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert "plan.json" in str(error)
    assert not (tmp_path / "out").exists()


def damage(folder: Path, file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)  # and with it the checksum that the store keeps beside what it published
    path.write_text(json.dumps(change(found)))


@pytest.mark.parametrize(
    ("file", "change", "code", "says"),
    [
        ("config.json", lambda c: {k: v for k, v in c.items() if k != "hidden_size"}, 2, r"config.json has no hidden_size; copy it again"),
        ("config.json", lambda c: c | {"hidden_size": "wide"}, 2, r"config.json.*width"),
        ("config.json", lambda c: c | {"num_attention_heads": 0, "head_dim": None}, 2, r"config.json has a field of no use"),
        ("config.json", lambda c: c | {"rope_parameters": "x"}, 2, r"config.json has a field of no use"),
        ("tokenizer.json", lambda c: {"model": None}, 2, r"tokenizer.json is no tokenizer .*copy it again"),
        ("tokenizer.json", lambda c: {"added_tokens": [{}]}, 2, r"tokenizer.json is no tokenizer .*'id'"),
        ("model.safetensors.index.json", lambda c: {"weight_map": [1]}, 1, r"index.json has no weight_map .*copy it again"),
        ("model.safetensors.index.json", lambda c: {"weight_map": {}}, 1, r"index.json has no weight_map"),
    ],
)
def test_damaged_folders_end_import_without_a_traceback(
    file: str, change: Callable[[Any], Any], code: int, says: str, tiny_model: Callable[..., Model], decoder_folder: Path, tmp_path: Path
) -> None:
    damage(decoder_folder, file, change)
    (tmp_path / "plan.json").write_bytes(encode(replace(recipe_function("mm1_tiny")().stages[0], model=tiny_model())))
    command = ["import", str(tmp_path / "plan.json"), str(tmp_path / "start"), "--decoder", str(decoder_folder)]
    found = CliRunner().invoke(weights_group, command).exception
    assert isinstance(found, StagecoachError)
    assert found.exit_code == code
    assert re.search(says, str(found))
    assert not (tmp_path / "start").exists()


def test_pretrained_parts_of_a_plan(tiny_model: Callable[..., Model], decoder_folder: Path) -> None:
    model = build_model(tiny_model())
    reports = import_pretrained(model, Pretrained(decoder=str(decoder_folder)))
    assert set(reports) == {"decoder"}
    assert import_pretrained(model, Pretrained()) == {}
