"""`gc`, `evaluate` and `--dry-run`: over the fake launcher and a real folder. No server is needed for the flows' bodies."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stagecoach.cli.evaluate import evaluate_command
from stagecoach.contract.evaluation import SCORES
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError
from stagecoach.stages.code import build_bundle, store_bundle
from stagecoach.stages.control import Control
from stagecoach.stages.evaluation import data_fingerprint
from stagecoach.testing.builders import stage_plan
from stagecoach.testing.checkpoints import write_checkpoint
from stagecoach.testing.fake_launcher import FakeCluster
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.cli import run_command
from stagecoach_flows.parameters import EvaluateParameters, GcParameters, Mm1Parameters
from stagecoach_flows.pipeline import plain_stage, run_pipeline
from stagecoach_flows.surroundings import Outcome, Surroundings, surrounded
from stagecoach_flows.upkeep import evaluate, gc

ASKED = ('sft.evaluation.suites=["general"]', "sft.evaluation.shots=[0]")
SETTINGS = (*(setting for setting in TOY_SETTINGS if setting != "sft.evaluation.suites=[]"), *ASKED)


@contextmanager
def flows_on(cluster: FakeCluster, **changes: Any) -> Iterator[None]:
    around = Surroundings(
        launcher=lambda *_: TrainingLauncher(cluster, Counter()), poll_s=0.0, retry_delays_s=(), outcome=Outcome(), **changes
    )
    with surrounded(around):
        yield


def trained(root: str, corpus: str, cluster: FakeCluster, **changes: Any) -> Runs:
    """A run whose stages are finished, without its evaluation."""
    asked: dict[str, Any] = {"recipe": "mm1_tiny", "root": root, "run_id": "toy", "data": corpus, "settings": SETTINGS, **changes}
    with flows_on(cluster, evaluation=lambda *_: None):
        run_pipeline(Mm1Parameters(**asked), run_one=plain_stage)
    return Runs.open(root)


def folder_of(runs: Runs, stage: str) -> JobFolder:
    run = runs.run("toy")
    assert run is not None
    return runs.stage(run, stage)


def steps_in(folder: JobFolder) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in folder.store.list_folders("checkpoints"))


def test_evaluate_asks_the_plans_suites_once(root: str, corpus: str) -> None:
    cluster = FakeCluster()
    runs = trained(root, corpus, cluster)
    wanted = EvaluateParameters(run_id="toy", stage="sft", root=root)
    with flows_on(cluster):
        first = evaluate.fn(wanted)
        assert evaluate.fn(wanted) == first
    assert list(first) == ["general"]
    assert JobFolder.open(first["general"]).store.exists(SCORES)
    assert len(cluster.jobs) == 3  # two stages, one evaluation
    with flows_on(cluster):
        with pytest.raises(ConfigError, match="run toy has pretrain, sft"):
            evaluate.fn(EvaluateParameters(run_id="toy", stage="video", root=root))
        assert Control(runs, "toy").held() is None


def test_a_stage_that_was_trained_with_somebodys_code_is_evaluated_with_it(
    root: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the flow and by the command alike: without it another model would be asked than the one that was trained."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.py").write_text("X = 1\n")
    bundle = build_bundle(tmp_path / "mine")
    uri, cluster = store_bundle(Runs.open(root), bundle), FakeCluster()
    trained(root, corpus, cluster, code=bundle.digest)
    assert {job.spec.code_uri for job in cluster.jobs.values()} == {uri}
    with flows_on(cluster):
        evaluate.fn(EvaluateParameters(run_id="toy", stage="sft", root=root))
    monkeypatch.setattr("stagecoach.launch.registry.get_launcher", lambda *_, **__: TrainingLauncher(cluster, Counter()))
    for asked in (["toy", "--stage", "sft", "--root", root], [f"{root}/runs/toy", "--stage", "pretrain"]):
        done = CliRunner().invoke(evaluate_command, [*asked, "--suite", "captions"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    asked_for = [job.spec.code_uri for job in cluster.jobs.values() if job.spec.entrypoint.endswith("evaluation:main")]
    assert asked_for == [uri] * 3


def test_gc_removes_what_nobody_keeps_and_leaves_alone_what_runs_and_what_was_handed_over(root: str, corpus: str) -> None:
    runs = trained(root, corpus, FakeCluster(), settings=(*SETTINGS, "pretrain.checkpoint.keep=2"))
    pretrain, sft = folder_of(runs, "pretrain"), folder_of(runs, "sft")
    for step in (1, 2, 3):
        write_checkpoint(pretrain, step)
    assert steps_in(pretrain) == [1, 2, 3, 4]
    looked = gc.fn(GcParameters(root=root, dry_run=True))
    assert steps_in(pretrain) == [1, 2, 3, 4]
    done = gc.fn(GcParameters(root=root))
    assert (looked["would_remove"], done["removed"]) == (2, 2)
    assert done["bytes"] > 0
    assert (steps_in(pretrain), steps_in(sft)) == ([3, 4], [4])  # what stage.json names stays
    assert gc.fn(GcParameters(root=root, run_id="toy"))["removed"] == 0


def test_gc_passes_over_a_run_that_cannot_be_read(root: str, corpus: str) -> None:
    runs = trained(root, corpus, FakeCluster())
    runs.store.publish("runs/broken/run.json", b"{")
    assert gc.fn(GcParameters(root=root)) == {"removed": 0, "bytes": 0}


def dry(root: str, corpus: str, *more: str, settings: Sequence[str] = SETTINGS) -> Any:
    sets = [part for setting in settings for part in ("--set", setting)]
    asked = ["mm1_tiny", "--root", root, "--run-id", "toy", "--data", corpus, *sets, "--dry-run", *more]
    return CliRunner().invoke(run_command, asked, catch_exceptions=False)


def test_a_dry_run_shows_all_stages_plans_costs_and_launch_specs_and_starts_nothing(root: str, corpus: str) -> None:
    told = json.loads(dry(root, corpus, "--json").stdout)
    assert told["format"] == "stagecoach.dry-run/1"
    assert [(stage["stage"], stage["starts_from"], stage["is_done"]) for stage in told["stages"]] == [
        ("pretrain", None, False), ("sft", "pretrain", False),
    ]  # fmt: skip
    for stage in told["stages"]:
        assert stage["plan"]["name"] == stage["stage"]
        assert all(one["fingerprint"] for one in stage["plan"]["data"]["datasets"] if one["uri"])
        assert stage["costs"]["steps"] == 4
        assert stage["costs"]["gpu_hours"] > 0
        assert stage["launch"]["entrypoint"] == "stagecoach_workloads.train:main"
        assert (stage["launch"]["identity"], stage["launch"]["job_uri"].startswith(f"{root}/runs/toy/")) == (stage["identity"], True)
    shown = dry(root, corpus).stdout
    assert all(f"# {stage}: {what}" in shown for stage in ("pretrain", "sft") for what in ("plan", "launch spec"))
    assert not Path(root.removeprefix("file://")).exists()


def test_a_dry_run_of_a_run_under_way_says_what_is_done(root: str, corpus: str) -> None:
    runs = trained(root, corpus, FakeCluster(), stages=("pretrain",))
    before = sorted((info.key, info.size) for info in runs.store.list(""))
    told = json.loads(dry(root, corpus, "--json").stdout)
    assert [stage["is_done"] for stage in told["stages"]] == [True, False]
    assert sorted((info.key, info.size) for info in runs.store.list("")) == before


def test_a_setting_of_a_frozen_plan_is_refused_before_it_is_kept_and_a_forgotten_one_is_told(root: str, corpus: str) -> None:
    """`resume` goes by what is kept: a refused command must leave it alone."""
    runs = trained(root, corpus, FakeCluster(), stages=("pretrain",))
    before = sorted((info.key, info.size, info.etag) for info in runs.store.list(""))
    other = [setting.replace("pretrain.steps=4", "pretrain.steps=5") for setting in SETTINGS]
    with pytest.raises(
        ConfigError, match=r"run toy has frozen another plan for stage pretrain: pretrain\.duration\.steps: there 4, asked 5"
    ):
        trained(root, corpus, FakeCluster(), settings=other)
    with pytest.raises(ConfigError, match="frozen another plan"):
        dry(root, corpus, settings=other)
    told = json.loads(dry(root, corpus, "--json", settings=[each for each in SETTINGS if each != "sft.steps=4"]).stdout)
    assert [(each["path"], "--set sft.steps=4" in each["says"]) for each in told["warnings"]] == [("run toy", True)]
    assert json.loads(dry(root, corpus, "--json").stdout)["warnings"] == []
    assert sorted((info.key, info.size, info.etag) for info in runs.store.list("")) == before


def test_new_code_is_planned_with_and_stored_only_with_a_run_that_can_be(root: str, corpus: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.py").write_text("X = 1\n")
    (tmp_path / "mine/.#mine.py").symlink_to("somebody@host.1")  # an editor's lock
    told = dry(root, corpus, "--json", "--code", str(tmp_path / "mine"))
    digest = build_bundle(tmp_path / "mine").digest
    assert [stage["plan"]["code"] for stage in json.loads(told.stdout)["stages"]] == [digest] * 2
    with pytest.raises(ConfigError, match="recipe"):
        CliRunner().invoke(run_command, ["nonsense", "--root", root, "--code", str(tmp_path / "mine")], catch_exceptions=False)
    assert not Path(root.removeprefix("file://")).exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--stages", ""), "--stages ''"),
        (("--launcher", "nonsense"), "no such launcher"),
        (("--set", "sft.evaluation.shots=[65]"), "shots"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(root: str, corpus: str, asked: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dry(root, corpus, *asked)


def test_a_suite_is_asked_again_when_its_data_changed(root: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    trained(root, corpus, cluster)
    monkeypatch.setattr("stagecoach.launch.registry.get_launcher", lambda *_, **__: TrainingLauncher(cluster, Counter()))
    folder = tmp_path / "docvqa"
    folder.mkdir()
    (folder / "page.png").write_bytes(b"looked at by the job")
    asked = ["toy", "--stage", "sft", "--root", root, "--suite", "docvqa", "--data", f"file://{folder}"]
    jobs = []
    for answer in ("one", "one", "another"):
        if not (folder / "val.json").exists() or answer == "another":
            row = {"questionId": 1, "question": "How many?", "image": "page.png", "answers": [answer]}
            (folder / "val.json").write_text(json.dumps({"data": [row]}))
        assert CliRunner().invoke(evaluate_command, asked, catch_exceptions=False).exit_code == 0
        jobs.append(len(cluster.jobs))
    assert jobs == [3, 3, 4]
    made = stage_plan()
    changed = data_fingerprint(made, "general", corpus)
    assert changed == data_fingerprint(made, "general", corpus) is not None
    assert changed != data_fingerprint(made, "captions", corpus)
    assert data_fingerprint(made, "general", None) is None
