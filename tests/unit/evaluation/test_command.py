"""`stagecoach evaluate`: what is refused before anything is started, and where an evaluation's folder stands."""

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from stagecoach.cli.evaluate import BENCHMARK_CHECKS, check_data, evaluate_command, read_shots
from stagecoach.contract.evaluation import EvaluationSettings, Scores
from stagecoach.contract.job import ObjectRef
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError
from stagecoach.site import Site
from stagecoach.stages.evaluation import EvaluationTask, job_record, launch_spec, made_suites
from stagecoach.testing.builders import run_record, stage_plan


def refused(*arguments: str) -> str:
    error = CliRunner().invoke(evaluate_command, arguments).exception
    assert isinstance(error, ConfigError)
    return str(error)


def test_what_was_asked_wrongly_is_told_before_anything_is_written(tmp_path: Path) -> None:
    root = f"file://{tmp_path}"
    Runs.open(root).create(run_record(run_id="r1", stages=("pretrain",)))
    common = ("r1", "--stage", "pretrain", "--root", root)
    before = sorted(tmp_path.rglob("*"))
    assert "did you mean vqav2" in refused(*common, "--suite", "vqav3")
    assert "--shots '0,x'" in refused(*common, "--suite", "vqa", "--shots", "0,x")
    assert "did you mean `r1`" in refused("r2", "--stage", "pretrain", "--root", root, "--suite", "vqa")
    assert "has no stage 'sft'" in refused("r1", "--stage", "sft", "--root", root, "--suite", "vqa")
    assert "it was never started" in refused(*common, "--suite", "vqa")
    assert sorted(tmp_path.rglob("*")) == before
    JobFolder.open(f"{root}/runs/r1/stages/00-pretrain").write_plan(stage_plan(name="pretrain"))
    assert "is not finished" in refused(*common, "--suite", "vqa")


def test_data_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded: give --data"):
        check_data(None, "docvqa")
    with pytest.raises(ConfigError, match="nothing is there; give the folder with the files of docvqa"):
        check_data(f"file://{tmp_path}/none", "docvqa")
    with pytest.raises(ConfigError, match="--data: .*make a corpus"):
        check_data(f"file://{tmp_path}/none", "vqa")


def test_files_that_are_not_the_benchmarks_are_refused_before_a_job_is_started(tmp_path: Path) -> None:
    data = f"file://{tmp_path}"
    (tmp_path / "notes.txt").write_text("no rows")
    with pytest.raises(ConfigError, match=r"^--data: .*no file with rows there"):
        check_data(data, "docvqa")
    rows = tmp_path / "val.json"
    rows.write_text(json.dumps([{"name": "another benchmark's"}]))
    with pytest.raises(ConfigError, match=r"^--data: .*val\.json: row 0 has no field .*\(it has name\)"):
        check_data(data, "docvqa")
    row = {"questionId": 1, "question": "How much?", "image": "page.png"}
    rows.write_text(json.dumps({"data": [row]}))
    with pytest.raises(ConfigError, match=r"^--data: .*no row of docvqa with an answer .*a test split has none"):
        check_data(data, "docvqa")
    rows.write_text(json.dumps({"data": [row | {"answers": ["7"]}]}))
    with pytest.raises(ConfigError, match=r"^--data: .*the image page\.png"):
        check_data(data, "docvqa")
    (tmp_path / "page.png").write_bytes(b"looked at by the job")
    check_data(data, "docvqa")


def test_a_controller_that_cannot_read_benchmarks_leaves_them_to_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("no rows")
    missing = EntryPoint("first_question", "no_such_room.evaluation:check", BENCHMARK_CHECKS)
    monkeypatch.setattr("stagecoach.cli.evaluate.entry_points", lambda group: [missing] if group == BENCHMARK_CHECKS else [])
    check_data(f"file://{tmp_path}", "docvqa")


def test_shots() -> None:
    assert read_shots(None) is None
    assert read_shots("8, 0,4,4") == (0, 4, 8)
    for wrong in ("", "-1", "65", "1;2"):
        with pytest.raises(ConfigError):
            read_shots(wrong)


def evaluation(folder: Path, **changes: object) -> EvaluationTask:
    settings = EvaluationSettings(stage_uri="file:///s", checkpoint=ObjectRef(uri="file:///c", digest="d"), suite="vqa")
    settings = replace(settings, **changes)  # type: ignore[arg-type]
    job = JobFolder.open(f"file://{folder}")
    return EvaluationTask(stage=job, run_id="r1", plan=stage_plan(), settings=settings, site=Site())


def test_another_question_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    first = evaluation(tmp_path)
    assert first.folder.uri.endswith("/evaluation/vqa")
    first.folder.write_job(job_record(first, first.folder))
    assert first.folder.uri.endswith("/evaluation/vqa")
    control = evaluation(tmp_path, shuffle_images=True)
    assert control.folder.uri.endswith(f"/evaluation/vqa-{control.identity[:8]}")
    names = {launch_spec(each, each.folder).name for each in (first, control)}
    assert len(names) == 2


def test_suites_without_data_are_left_out() -> None:
    plan = stage_plan()
    plan = replace(plan, evaluation=replace(plan.evaluation, suites=("vqa", "docvqa")))
    assert made_suites(plan, None) == []
    with pytest.raises(ConfigError, match="did you mean"):
        made_suites(replace(plan, evaluation=replace(plan.evaluation, suites=("vqaa",))), None)


def test_what_the_scores_do_not_show_is_said() -> None:
    settings = EvaluationSettings(stage_uri="file:///s", checkpoint=ObjectRef(uri="file:///c", digest="d"), suite="vqa")
    metrics = {"mean@0": 1.0, "not_asked": 2000.0, "cut_off": 0.0, "shots_left_out": 8.0}
    assert Scores(settings=settings, scores=(), answers=9, metrics=metrics, finished_at="Monday").remarks() == [
        "2,000 questions could not be asked and count as wrong",
        "8 shots in all were left out: they did not fit into the prompts, or there were not as many",
    ]
