"""The stage runner over the fake launcher: real storage, real checkpoints, jobs that a test moves along."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagecoach.checkpoints.listing import MANIFEST
from stagecoach.contract.identity import identity_hash
from stagecoach.contract.job import ObjectRef, TrainResult
from stagecoach.contract.launch import JobState, NameTaken
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import Parent, StagePlan
from stagecoach.errors import CheckpointError, ConfigError, RunFailed
from stagecoach.site import Site
from stagecoach.stages import StageTask, run_stage
from stagecoach.stages.parent import find_parent, pin_parent
from stagecoach.testing.builders import attempt_end, attempt_start, run_record, stage_plan
from stagecoach.testing.checkpoints import write_checkpoint
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher

TOKENIZER = "ab" * 32


def plan_of(name: str = "pretrain", **changes: Any) -> StagePlan:
    plan = stage_plan(name=name, **changes)
    return replace(plan, data=replace(plan.data, tokenizer="file:///t/tokenizer.json", tokenizer_fingerprint=TOKENIZER))


def task_of(root: str, plan: StagePlan | None = None, **changes: Any) -> StageTask:
    runs, run = Runs.open(root), run_record()
    runs.create(run)
    return StageTask(runs=runs, run=run, plan=plan or plan_of(), site=Site(), poll_s=0.01, **changes)


def train(folder: JobFolder, *, attempt: int = 1, step: int = 20) -> None:
    """What a job that runs to its end leaves in the bucket."""
    folder.claim_attempt(attempt_start(attempt=attempt))
    ref = write_checkpoint(folder, step, attempt)
    digest = hashlib.sha256(folder.store.read(f"{ref.key}/{MANIFEST}")).hexdigest()
    checkpoint = ObjectRef(uri=ref.uri, digest=digest)
    folder.write_result(
        TrainResult(attempt=attempt, step=step, checkpoint=checkpoint, weights_digest="w", tokens=100, metrics={"loss": 1.5})
    )


def script(cluster: FakeCluster, folder: JobFolder, *moves: Callable[[str], None]) -> Callable[[JobState], None]:
    """Told of the state of each submission, makes the next move on it."""
    left = list(moves)

    def on_state(state: JobState) -> None:
        if not state.phase.is_terminal and left:
            left.pop(0)(folder.submissions()[-1].name)

    return on_state


def finishing(root: str, cluster: FakeCluster, plan: StagePlan | None = None) -> StageTask:
    """A task whose job trains and succeeds at the first look."""
    task = task_of(root, plan)

    def done(name: str) -> None:
        train(task.folder)
        cluster.finish(name, 0)

    return replace(task, on_state=script(cluster, task.folder, done))


def test_a_stage_ends_with_a_manifest_that_names_what_the_next_one_verifies(root: str) -> None:
    cluster = FakeCluster()
    task = finishing(root, cluster)
    result = run_stage(task, FakeLauncher(cluster))
    told = task.folder.stage()
    assert told == result.manifest
    assert told is not None
    assert (told.identity, told.steps, told.tokens, told.weights_digest) == (identity_hash(task.plan), 20, 100, "w")
    assert told.fingerprints["tokenizer"] == TOKENIZER
    assert task.folder.plan() == task.plan


def test_a_finished_stage_is_left_alone(root: str) -> None:
    cluster = FakeCluster()
    first = run_stage(finishing(root, cluster), FakeLauncher(cluster))
    again = run_stage(task_of(root), FakeLauncher(cluster))
    assert again.was_done
    assert again.manifest == first.manifest
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize("code", [75, 143])
def test_a_stopped_job_goes_on_with_the_next_submission(root: str, code: int) -> None:
    cluster = FakeCluster()
    task = task_of(root)

    def stopped(name: str) -> None:
        task.folder.claim_attempt(attempt_start(attempt=1))
        cluster.finish(name, code)

    def done(name: str) -> None:
        train(task.folder, attempt=2)
        cluster.finish(name, 0)

    result = run_stage(replace(task, on_state=script(cluster, task.folder, stopped, done)), FakeLauncher(cluster))
    assert result.manifest.attempts == 2
    assert [one.submission for one in task.folder.submissions()] == [1, 2]


def test_a_job_that_cannot_even_claim_an_attempt_is_not_tried_for_ever(root: str) -> None:
    cluster = FakeCluster()
    task = task_of(root)
    moves = [lambda name: cluster.finish(name, 75)] * 5
    with pytest.raises(RunFailed, match="failed with 75"):
        run_stage(replace(task, on_state=script(cluster, task.folder, *moves)), FakeLauncher(cluster))
    assert len(task.folder.submissions()) == 3


def test_a_fatal_end_is_told_from_the_ledger_and_not_tried_again(root: str) -> None:
    cluster = FakeCluster()
    task = task_of(root)

    def bad_data(name: str) -> None:
        task.folder.claim_attempt(attempt_start(attempt=1))
        task.folder.end_attempt(attempt_end(kind="bad_data", exit_code=41, message="rank 1, step 3: shard 7 is cut off"))
        cluster.finish(name, 41)

    with pytest.raises(RunFailed, match="failed with 41: bad data: rank 1, step 3: shard 7 is cut off") as failed:
        run_stage(replace(task, on_state=script(cluster, task.folder, bad_data)), FakeLauncher(cluster))
    assert failed.value.job_exit_code == 41
    with pytest.raises(RunFailed, match="never retried"):
        run_stage(task_of(root), FakeLauncher(cluster))
    again = finishing(root, cluster)
    assert run_stage(replace(again, after_fatal=True), FakeLauncher(cluster)).manifest.steps == 20


def test_cancelled_is_not_tried_again_by_itself(root: str) -> None:
    cluster = FakeCluster()
    launcher = FakeLauncher(cluster)
    task = task_of(root)
    cancelled = script(cluster, task.folder, lambda name: launcher.cancel(launcher.attach(name)))  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="was cancelled") as told:
        run_stage(replace(task, on_state=cancelled), launcher)
    assert told.value.job_exit_code == 143
    assert run_stage(finishing(root, cluster), launcher).manifest.steps == 20


@pytest.mark.parametrize("point", ["before_create", "after_create"])
def test_killed_while_submitting_it_attaches_when_run_again(root: str, point: Any) -> None:
    cluster = FakeCluster()
    with pytest.raises(Crashed):
        run_stage(task_of(root), FakeLauncher(cluster, crash_at=point))
    run_stage(finishing(root, cluster), FakeLauncher(cluster))
    assert [job.starts for job in cluster.jobs.values()] == [1]


def test_killed_between_the_job_s_end_and_the_manifest_nothing_is_run_twice(root: str) -> None:
    cluster = FakeCluster()
    task = finishing(root, cluster)

    def die(*_: object) -> dict[str, str]:
        raise Crashed("here")

    with pytest.raises(Crashed):
        run_stage(task, FakeLauncher(cluster), evaluate=die)
    assert task.folder.stage() is None
    cluster.jobs.clear()  # the launcher has forgotten it by then
    assert run_stage(task_of(root), FakeLauncher(cluster)).manifest.steps == 20
    assert not cluster.jobs


def test_another_plan_under_the_same_run_is_refused_with_what_differs(root: str) -> None:
    cluster = FakeCluster()
    run_stage(finishing(root, cluster), FakeLauncher(cluster))
    other = replace(plan_of(), optimizer=replace(plan_of().optimizer, peak_lr=2e-3))
    with pytest.raises(ConfigError, match=r"pretrain\.optimizer\.peak_lr: there 0\.001, asked 0\.002"):
        run_stage(task_of(root, other), FakeLauncher(cluster))


def test_another_layout_replaces_the_plan_only_while_no_job_is_open(root: str) -> None:
    cluster = FakeCluster()
    task = task_of(root)
    with pytest.raises(Crashed):
        run_stage(task, FakeLauncher(cluster, crash_at="after_create"))
    four = replace(plan_of(), layout=replace(plan_of().layout, ranks_per_node=4))
    with pytest.raises(NameTaken, match="ranks_per_node: there 2, asked 4"):
        run_stage(task_of(root, four), FakeLauncher(cluster))
    assert task.folder.plan() == task.plan
    cluster.finish(task.folder.submissions()[-1].name, 143)
    run_stage(finishing(root, cluster, four), FakeLauncher(cluster))
    assert task.folder.plan() == four


def test_a_checkpoint_damaged_before_the_manifest_is_written_is_named(root: str) -> None:
    cluster = FakeCluster()
    task = task_of(root)

    def damaged(name: str) -> None:
        train(task.folder)
        result = task.folder.result()
        assert result is not None
        path = Path(result.checkpoint.uri.removeprefix("file://"), "model-00000.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        cluster.finish(name, 0)

    with pytest.raises(CheckpointError, match=r"model-00000\.safetensors"):
        run_stage(replace(task, on_state=script(cluster, task.folder, damaged)), FakeLauncher(cluster))
    assert task.folder.stage() is None


# --- the parent


def child_of(root: str, **changes: Any) -> StagePlan:
    task = task_of(root)
    plan = plan_of("sft", init=Parent(stage="pretrain"), **changes)
    found = find_parent(task.runs, task.run, plan, checkpoint=None)
    assert found is not None
    return pin_parent(found, plan, depth="full")


def test_a_child_names_its_parent_s_checkpoint_and_digest(root: str) -> None:
    cluster = FakeCluster()
    told = run_stage(finishing(root, cluster), FakeLauncher(cluster)).manifest
    plan = child_of(root)
    assert plan.init == Parent(stage="pretrain", checkpoint=told.checkpoint.uri, digest=told.checkpoint.digest)


def test_a_flipped_weight_of_the_parent_is_found_before_anything_is_submitted(root: str) -> None:
    cluster = FakeCluster()
    told = run_stage(finishing(root, cluster), FakeLauncher(cluster)).manifest
    path = Path(told.checkpoint.uri.removeprefix("file://"), "model-00001.safetensors")
    body = bytearray(path.read_bytes())
    body[-3] ^= 4
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match=r"model-00001\.safetensors"):
        child_of(root)


def test_a_manifest_edited_after_the_hand_over_is_refused(root: str) -> None:
    cluster = FakeCluster()
    told = run_stage(finishing(root, cluster), FakeLauncher(cluster)).manifest
    folder = Path(told.checkpoint.uri.removeprefix("file://"))
    body = (folder / "MANIFEST.json").read_bytes().replace(b'"attempt"', b' "attempt"', 1)
    (folder / "MANIFEST.json").write_bytes(body)
    (folder / "COMMITTED").write_bytes(hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(CheckpointError):
        child_of(root)


def test_a_child_of_another_shape_or_tokenizer_is_refused_by_field(root: str) -> None:
    cluster = FakeCluster()
    run_stage(finishing(root, cluster), FakeLauncher(cluster))
    model = plan_of().model
    with pytest.raises(CheckpointError, match=r"decoder\.layers: parent 2, sft 3"):
        child_of(root, model=replace(model, decoder=replace(model.decoder, layers=3)))
    task = task_of(root)
    plan = plan_of("sft", init=Parent(stage="pretrain"))
    plan = replace(plan, data=replace(plan.data, tokenizer_fingerprint="cd" * 32))
    found = find_parent(task.runs, task.run, plan, checkpoint=None)
    assert found is not None
    with pytest.raises(CheckpointError, match="the same text would be other numbers"):
        pin_parent(found, plan, depth="quick")


def test_a_child_may_see_larger_images_than_its_parent(root: str) -> None:
    cluster = FakeCluster()
    run_stage(finishing(root, cluster), FakeLauncher(cluster))
    model = plan_of().model
    larger = replace(model, encoder=replace(model.encoder, image_size=2 * model.encoder.image_size))
    assert isinstance(child_of(root, model=larger).init, Parent)
    with pytest.raises(CheckpointError, match=r"encoder\.patch_size: parent"):
        child_of(root, model=replace(larger, encoder=replace(larger.encoder, patch_size=model.encoder.patch_size // 2)))


def test_another_run_s_stage_can_be_the_parent(root: str, tmp_path: Path) -> None:
    cluster = FakeCluster()
    done = run_stage(finishing(root, cluster), FakeLauncher(cluster))
    other = Runs.open(f"file://{tmp_path}/other")
    plan = plan_of("sft", init=Parent(stage="pretrain"))
    for uri in (done.folder.uri, done.manifest.checkpoint.uri):
        found = find_parent(other, run_record(run_id="fork"), plan, checkpoint=uri)
        assert found is not None
        pinned = pin_parent(found, plan, depth="quick").init
        assert isinstance(pinned, Parent)
        assert (pinned.checkpoint, pinned.digest) == (done.manifest.checkpoint.uri, done.manifest.checkpoint.digest)
    with pytest.raises(ConfigError, match="no committed checkpoint there"):
        find_parent(other, run_record(run_id="fork"), plan, checkpoint=f"file://{tmp_path}/nothing")


def test_another_run_s_checkpoint_is_pinned_while_a_run_may_read_it(root: str, tmp_path: Path) -> None:
    cluster = FakeCluster()
    done = run_stage(finishing(root, cluster), FakeLauncher(cluster))
    plan = plan_of("sft", init=Parent(stage="pretrain", checkpoint=done.manifest.checkpoint.uri, digest=done.manifest.checkpoint.digest))
    fork = finishing(f"file://{tmp_path}/other", cluster, plan)
    run_stage(fork, FakeLauncher(cluster))
    assert [info.key for info in done.folder.store.list("pins")] == [f"pins/{fork.run.run_id}.json"]
