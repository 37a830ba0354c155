"""`stagecoach evaluate`: what is refused before anything is started, and where an evaluation's folder stands."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from stagecoach.cli.evaluate import check_data, evaluate_command, read_shots, remarks
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


def test_what_the_table_does_not_show_is_said_below_it() -> None:
    settings = EvaluationSettings(stage_uri="file:///s", checkpoint=ObjectRef(uri="file:///c", digest="d"), suite="vqa")
    metrics = {"mean@0": 1.0, "not_asked": 2.0, "cut_off": 0.0, "shots_left_out": 8.0}
    assert remarks(Scores(settings=settings, scores=(), answers=9, metrics=metrics, finished_at="Monday")) == [
        "2 questions could not be asked and count as wrong",
        "8 shots in all did not fit into the prompts and were left out",
    ]
