"""Evaluation as a job of two real ranks under supervisor and launcher: killed in the middle, it goes on where it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract.evaluation import EvaluationSettings, Scores
from stagecoach.contract.job import ObjectRef, TrainResult
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import RunFailed
from stagecoach.launch.local import LocalLauncher
from stagecoach.site import Site
from stagecoach.stages.evaluation import EvaluationTask, evaluate_stage, read_scores, run_evaluation
from stagecoach.stages.runner import StageTask
from stagecoach.testing.builders import run_record
from stagecoach.testing.checkpoints import Whole, write_checkpoint
from stagecoach.testing.training import toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.models.build import build_model

DATASETS = ("captions", "interleaved")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=DATASETS)
    return f"file://{folder}"


@pytest.fixture
def plan(corpus: str) -> StagePlan:
    return toy_stage(corpus, ['evaluation.suites=["captions","in_context","vqa"]', "evaluation.shots=[0,4]"])


@pytest.fixture
def launcher(tmp_path: Path) -> LocalLauncher:
    return LocalLauncher(tmp_path / "state")


class Stage:
    """A finished stage with random weights."""

    def __init__(self, root: Path, plan: StagePlan) -> None:
        self.runs, self.run, self.plan = Runs.open(f"file://{root}"), run_record(stages=(plan.name,)), plan
        self.folder = self.runs.stage(self.run, plan.name)
        self.folder.write_plan(plan)
        model = build_model(plan.model, seed=1)
        state = [
            Whole(part="model", name=name, dtype="F32", shape=tuple(value.shape), body=value.detach().numpy().tobytes())
            for name, value in model.named_parameters()
        ]
        ref = write_checkpoint(self.folder, 5, state=state)
        checkpoint = ObjectRef(uri=ref.uri, digest=self.folder.store.read(f"{ref.key}/COMMITTED").decode())
        self.result = TrainResult(attempt=1, step=5, checkpoint=checkpoint, weights_digest="0" * 64, tokens=1)

    def task(self, environment: dict[str, str] | None = None, **settings: object) -> EvaluationTask:
        asked = EvaluationSettings(
            stage_uri=self.folder.uri,
            checkpoint=self.result.checkpoint,
            suite="captions+in_context",
            shots=(0, 1, 2, 4, 8),
            max_new_tokens=4,
        )
        return EvaluationTask(
            stage=self.folder, run_id=self.run.run_id, plan=self.plan, settings=replace(asked, **settings),  # type: ignore[arg-type]
            site=Site(environment=environment or {}), poll_s=0.1,
        )  # fmt: skip


def faults(*orders: dict[str, object]) -> dict[str, str]:
    return {"STAGECOACH_TEST_FAULTS": json.dumps(orders)}


def told(folder: JobFolder, attempt: int, rank: int, name: str) -> list[object]:
    return [event["value"] for event in folder.events(attempt, f"rank-{rank}") if event["name"] == name]


def comparable(scores: Scores) -> object:
    return scores.scores, scores.answers, scores.metrics


def test_a_killed_rank_goes_on_behind_its_last_segment(plan: StagePlan, tmp_path: Path, launcher: LocalLauncher) -> None:
    """40 questions at five numbers of shots are four segments, of which rank 0 has the first and the third."""
    whole = run_evaluation(Stage(tmp_path / "whole", plan).task(), launcher)
    killed = Stage(tmp_path / "killed", plan)
    task = killed.task(faults({"at": "evaluation", "action": "sigkill", "rank": 0, "step": 1, "attempt": 1}))
    scores = run_evaluation(task, launcher)
    assert comparable(scores) == comparable(whole)
    assert len(task.folder.attempt_numbers()) >= 2
    first, second = task.folder.attempt_end(1), task.folder.attempt_end(task.folder.attempt_numbers()[-1])
    assert first is not None
    assert (first.kind, first.first_failed_rank) == ("crashed", 0)
    assert second is not None
    assert second.kind == "done"
    [again] = told(task.folder, task.folder.attempt_numbers()[-1], 0, "evaluation")
    assert isinstance(again, dict)
    assert again["done_before"] == 1  # not asked a second time


def test_the_hook_runs_every_suite_once_and_what_is_done_is_left_alone(plan: StagePlan, tmp_path: Path, launcher: LocalLauncher) -> None:
    stage = Stage(tmp_path / "root", plan)
    task = StageTask(runs=stage.runs, run=stage.run, plan=plan, site=Site(), poll_s=0.1)
    found = evaluate_stage(task, launcher, stage.result)
    assert found == {"captions+in_context": f"{stage.folder.uri}/evaluation/captions+in_context"}  # there is no data for vqa
    folder = JobFolder.open(found["captions+in_context"])
    scores = read_scores(folder)
    assert scores is not None
    assert {(score.category, score.shots) for score in scores.scores} >= {("captions", 0), ("captions", 4), ("few_shot", 8)}
    assert evaluate_stage(task, launcher, stage.result) == found
    assert len(folder.submissions()) == 1


def test_a_fatal_end_is_told_and_nothing_is_tried_again(plan: StagePlan, tmp_path: Path, launcher: LocalLauncher) -> None:
    stage = Stage(tmp_path / "root", plan)
    wrong = ObjectRef(uri=stage.result.checkpoint.uri, digest="0" * 64)
    with pytest.raises(RunFailed, match="it was replaced since") as failed:
        run_evaluation(stage.task(checkpoint=wrong), launcher)
    assert failed.value.job_exit_code == 42
