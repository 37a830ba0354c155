"""`stagecoach run-stage`, as a person or a script calls it: data, plan and bucket are real, the job is moved along by the test."""

import hashlib
import json
from pathlib import Path

import pytest

from stagecoach.checkpoints.listing import MANIFEST
from stagecoach.cli import run
from stagecoach.contract.job import ObjectRef, TrainResult
from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.builders import attempt_end, attempt_start
from stagecoach.testing.checkpoints import write_checkpoint
from stagecoach.testing.fake_launcher import FakeCluster, FakeLauncher

RUN = ("run-stage", "mm1_tiny", "--stage", "pretrain", "--run-id", "r1")


class Story:
    """What the job does: at the n-th look at it the n-th code ends it; None: it goes on. Ctrl-C comes at the first `interrupts` looks."""

    def __init__(self, root: Path) -> None:
        self.folder = JobFolder.open(f"file://{root}/runs/r1/stages/00-pretrain")
        self.cluster, self.ends, self.interrupts = FakeCluster(), list[int | None](), 0

    def look(self) -> None:
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        code = self.ends.pop(0) if self.ends else None
        if code is None:
            return
        number = len(self.folder.attempt_numbers()) + 1
        self.folder.claim_attempt(attempt_start(attempt=number, submission=number, leader_host="gpu-17"))
        if code == 0:
            ref = write_checkpoint(self.folder, 20, number)
            digest = hashlib.sha256(self.folder.store.read(f"{ref.key}/{MANIFEST}")).hexdigest()
            checkpoint = ObjectRef(uri=ref.uri, digest=digest)
            self.folder.write_result(
                TrainResult(attempt=number, step=20, checkpoint=checkpoint, weights_digest="w", tokens=100, metrics={"loss": 1.5})
            )
        elif code == 43:
            self.folder.end_attempt(attempt_end(attempt=number, kind="diverged", exit_code=43, message="step 7: loss=nan: not finite"))
        self.cluster.finish(self.folder.submissions()[-1].name, code)


class Watched(FakeLauncher):
    """Each look at a job is told to the story first."""

    def __init__(self, story: Story) -> None:
        super().__init__(story.cluster)
        self._story = story

    def describe(self, handle):  # type: ignore[no-untyped-def]
        if self.cluster.jobs[handle.name].state.phase == "RUNNING":
            self._story.look()
        return super().describe(handle)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    story = Story(tmp_path / "root")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STAGECOACH_SITE", raising=False)
    monkeypatch.setattr("stagecoach.launch.registry.get_launcher", lambda *_arguments, **_named: Watched(story))
    return story


@pytest.fixture
def arguments(corpus: str, tmp_path: Path) -> list[str]:
    return [*RUN, "--data", corpus, "--root", f"file://{tmp_path}/root", "--launcher", "local"]


def test_it_runs_the_stage_and_says_what_came_of_it_and_again_that_it_was_finished(
    story: Story, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    story.ends = [143, 0]  # stopped by the platform once: the next submission goes on
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["run_id"], told["steps"], told["weights_digest"]) == ("stagecoach.stage/1", "r1", 20, "w")
    assert len(story.cluster.jobs) == 2
    assert run(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "finished before: r1/pretrain, step 20"
    assert said[2] == "weights:    w"
    assert len(story.cluster.jobs) == 2  # nothing was started
    assert len(story.folder.submissions()) == 2


def test_a_fatal_end_is_the_commands_own_code_and_is_not_tried_again_unasked(
    story: Story, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    story.ends = [43]
    assert run(arguments) == 43
    said = capsys.readouterr().err
    assert "failed with 43: diverged: step 7: loss=nan: not finite" in said
    assert "stagecoach explain r1" in said
    assert run(arguments) == 43
    assert "never retried" in capsys.readouterr().err
    story.ends = [0]
    assert run([*arguments, "--after-fatal"]) == 0


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back_and_the_same_command_attaches(
    story: Story, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecoach.cli.stage_view.CANCEL_WITHIN_S", 0.0)
    story.interrupts = 1
    assert run(arguments) == 2
    assert "no longer watching; the job goes on. The same command with --run-id r1 attaches to it" in capsys.readouterr().err
    ((name, job),) = story.cluster.jobs.items()
    assert job.state.phase == "RUNNING"
    story.ends = [None, None, None, None, 0]  # it is looked at a few times before it is attached to
    assert run(arguments) == 0
    assert [(each, job.starts) for each, job in story.cluster.jobs.items()] == [(name, 1)]
    assert f"'{name}' was submitted to launcher 'fake'" in capsys.readouterr().err


def test_ctrl_c_twice_cancels(
    story: Story, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(_seconds: float) -> None:
        raise KeyboardInterrupt

    story.interrupts = 1
    monkeypatch.setattr("stagecoach.cli.stage_view.time.sleep", again)
    assert run(arguments) == 143
    assert "r1, stage pretrain: cancelled" in capsys.readouterr().err
    assert [job.state.phase for job in story.cluster.jobs.values()] == ["CANCELLED"]


def test_a_dry_run_shows_plan_and_launch_and_writes_nothing(
    story: Story, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--dry-run", "--ranks-per-node", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"]["run_id"], told["plan"]["layout"]["ranks_per_node"], told["launch"]["ranks_per_node"]) == ("r1", 2, 2)
    assert not (tmp_path / "root").exists()
    assert story.cluster.jobs == {}
