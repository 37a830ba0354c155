"""One stage: plan frozen, job submitted or attached to, watched, its checkpoint verified, `stage.json` written.

Every step looks first at what the bucket says was done, so that it may be killed at any line and called again, by anyone, any number
of times: a finished stage is left alone, a running job is attached to, a stopped one goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from loguru import logger

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.holds import pin
from stagecoach.checkpoints.verify import verify
from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.identity import identity_hash, model_fingerprint
from stagecoach.contract.job import ObjectRef, RunRecord, StageManifest, TrainResult
from stagecoach.contract.launch import JobState, Launcher, LaunchSpec
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.names import job_name
from stagecoach.contract.plan import Parent, StagePlan
from stagecoach.errors import CheckpointError, RunFailed, StorageError
from stagecoach.launch.submit import POLL_S, settle, submit_job, wait_job
from stagecoach.site import Site
from stagecoach.stages.act import stop_if_held
from stagecoach.stages.control import Control
from stagecoach.stages.differences import refuse_other_plan
from stagecoach.stages.parent import Depth
from stagecoach.stages.pins import data_fingerprint

ENTRYPOINT = "stagecoach_workloads.train:main"
MAX_SUBMISSIONS_WITHOUT_ATTEMPT = 3  # in a row: a job whose supervisor cannot even claim an attempt is not tried for ever

Evaluate = Callable[[JobFolder, StagePlan, TrainResult], dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """What is to be run: a stage of a run, its plan pinned (`pins`, `parent`)."""

    runs: Runs
    run: RunRecord
    plan: StagePlan
    site: Site
    depth: Depth = "quick"
    after_fatal: bool = False  # run again after 40-49: the cause was removed
    on_state: Callable[[JobState], None] = field(default=lambda _: None)
    on_poll: Callable[[JobFolder], None] = field(default=lambda _: None)
    poll_s: float = POLL_S
    code_uri: str | None = None  # of the bundle whose digest is `plan.code`

    @property
    def folder(self) -> JobFolder:
        return self.runs.stage(self.run, self.plan.name)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage. `was_done`: it had been finished before, and nothing was started."""

    folder: JobFolder
    manifest: StageManifest
    was_done: bool


def run_stage(task: StageTask, launcher: Launcher, *, evaluate: Evaluate | None = None) -> StageResult:
    """Runs the stage to its `stage.json`, or finds it there.

    Raises ConfigError when the run froze another plan, CheckpointError when a checkpoint does not verify, RunFailed when the job failed
    for good or was cancelled, RunHeld when the run is paused or cancelled, NameTaken when it runs under another spec, and what storage and
    launcher raise.
    """
    folder = task.folder
    done = folder.stage()
    if done is not None:
        check_finished(task, done)
        return StageResult(folder=folder, manifest=done, was_done=True)
    hold_parent(task)
    freeze_plan(task, launcher)
    result = trained(task, launcher)
    check_result(folder, result, task.depth)
    evaluations = evaluate(folder, task.plan, result) if evaluate is not None else {}
    folder.write_stage(stage_manifest(task, result, evaluations))
    manifest = folder.stage()
    assert manifest is not None
    return StageResult(folder=folder, manifest=manifest, was_done=False)


def check_finished(task: StageTask, done: StageManifest) -> None:
    """A finished stage is left alone if it is the one that was asked for, and its checkpoint is what it says."""
    frozen = task.folder.plan()
    if frozen is not None and done.identity != identity_hash(task.plan):
        refuse_other_plan(task.run.run_id, frozen, task.plan)
    found = verify(*checkpoint_at(done.checkpoint.uri), level=task.depth)
    if found.digest != done.checkpoint.digest:
        raise CheckpointError(f"{done.checkpoint.uri}: its manifest is not the one that {task.folder.uri}/stage.json names")


def hold_parent(task: StageTask) -> None:
    """Another run's checkpoint stays as long as this run may read it: its own `stage.json` holds only what that run hands over."""
    init = task.plan.init
    if (
        not isinstance(init, Parent)
        or init.checkpoint is None
        or init.checkpoint.startswith(f"{task.runs.store.uri}/runs/{task.run.run_id}/")
    ):
        return
    job, ref = checkpoint_at(init.checkpoint)
    try:
        pin(job, ref, run_id=task.run.run_id)
    except StorageError as error:  # somebody else's bucket, which we may only read
        logger.warning("{} cannot be pinned, so whoever owns it may remove it: {}", init.checkpoint, error)


def freeze_plan(task: StageTask, launcher: Launcher) -> None:
    """Writes plan.json before anything starts. Another layout of the same identity replaces it, while no submission is open."""
    folder, plan = task.folder, task.plan
    if folder.write_plan(plan):
        return
    frozen = folder.plan()
    assert frozen is not None
    if identity_hash(frozen) != identity_hash(plan):
        refuse_other_plan(task.run.run_id, frozen, plan)
    newest = next(reversed(folder.submissions()), None)
    is_open = newest is not None and settle(launcher, folder, newest) is None
    if frozen != plan and not is_open:
        folder.replace_plan(plan)


def trained(task: StageTask, launcher: Launcher) -> TrainResult:
    """Submits or attaches, watches, and follows a job that may go on with the next submission, until training is done."""
    folder, fruitless = task.folder, 0
    after_fatal = task.after_fatal
    while True:
        result = result_of_done(folder, launcher)
        if result is not None:
            return result
        attempts = len(folder.attempt_numbers())
        Control(task.runs, task.run.run_id).check()
        handle = submit_job(launcher, folder, launch_spec(task), after_fatal=after_fatal)
        stop_if_held(Control(task.runs, task.run.run_id).check, folder, launcher)
        number = folder.submissions()[-1].submission
        state = wait_job(
            launcher, folder, handle, number, poll_s=task.poll_s,
            on_state=lambda seen: told(task, seen), on_poll=lambda: task.on_poll(folder),
        )  # fmt: skip
        if state.phase == Phase.CANCELLED:
            Control(task.runs, task.run.run_id).check()  # held: another sentence, since running again would not go on
            says = f"{handle.name} was cancelled; run the same command again to go on"
            raise RunFailed(says, run_id=task.run.run_id, job_exit_code=ExitCode.STOPPED, log_uri=folder.uri)
        if state.phase == Phase.FAILED and state.exit_code not in (ExitCode.RETRY, ExitCode.STOPPED):
            raise failed(task, state)
        fruitless = 0 if len(folder.attempt_numbers()) > attempts or state.phase == Phase.SUCCEEDED else fruitless + 1
        if fruitless == MAX_SUBMISSIONS_WITHOUT_ATTEMPT:
            raise failed(task, state)
        after_fatal = False


def told(task: StageTask, state: JobState) -> None:
    """Of a change. Raises RunHeld once the job of a paused run has given its place back: a person may lift that in days."""
    task.on_state(state)
    if state.phase == Phase.PAUSED:
        Control(task.runs, task.run.run_id).check()


def result_of_done(folder: JobFolder, launcher: Launcher) -> TrainResult | None:
    """What training came to, when the newest submission ended with 0. None when there is something left to run."""
    newest = next(reversed(folder.submissions()), None)
    ended = settle(launcher, folder, newest) if newest is not None else None
    if ended is None or ended.exit_code != ExitCode.DONE:
        return None
    result = folder.result()
    if result is None:
        raise RunFailed(
            f"{folder.uri}: submission {ended.submission} ended well and left no result.json; the training image is not this Stagecoach's, "
            "or the run's folder was removed while its launcher knew the job: then take another --run-id",
            run_id=folder.uri, log_uri=folder.uri,
        )  # fmt: skip
    return result


def launch_spec(task: StageTask) -> LaunchSpec:
    """What the launcher is asked for. Cluster values come from the site, the rest from the plan."""
    plan, site, run = task.plan, task.site, task.run
    hours = plan.resources.max_hours
    priorities = site.priority_classes
    identity = identity_hash(plan)
    return LaunchSpec(
        job_uri=task.folder.uri,
        name=job_name(run.run_id, plan.name, identity, 1),
        identity=identity,
        entrypoint=ENTRYPOINT,
        nodes=plan.layout.nodes,
        ranks_per_node=plan.layout.ranks_per_node,
        resources=plan.resources,
        image=site.images.training,
        code_uri=task.code_uri,
        grace_s=site.grace_s,
        max_seconds=None if hours is None else max(1, round(hours * 3600)),
        environment=site.environment,
        secrets=site.secrets,
        queue=site.queue,
        priority=priorities.get(plan.name, priorities.get("default")),
    )


def check_result(folder: JobFolder, result: TrainResult, depth: Depth) -> None:
    """The final checkpoint is there, whole, and the one the trainer named."""
    found = verify(*checkpoint_at(result.checkpoint.uri), level=depth)
    if found.digest != result.checkpoint.digest:
        raise CheckpointError(
            f"{result.checkpoint.uri}: its manifest has digest {found.digest[:16]}, and {folder.uri}/result.json names "
            f"{result.checkpoint.digest[:16]}; the stage is not finished with it: remove result.json and run it again"
        )


def stage_manifest(task: StageTask, result: TrainResult, evaluations: dict[str, str]) -> StageManifest:
    """The hand-over: what the next stage verifies."""
    plan, init = task.plan, task.plan.init
    parent = None
    if isinstance(init, Parent) and init.checkpoint is not None and init.digest is not None:
        parent = ObjectRef(uri=init.checkpoint, digest=init.digest)
    return StageManifest(
        run_id=task.run.run_id,
        stage=plan.name,
        identity=identity_hash(plan),
        parent=parent,
        checkpoint=result.checkpoint,
        weights_digest=result.weights_digest,
        fingerprints={
            "tokenizer": plan.data.tokenizer_fingerprint or "",
            "model": model_fingerprint(plan.model),
            "data": data_fingerprint(plan),
        },
        steps=result.step,
        tokens=result.tokens,
        metrics=result.metrics,
        evaluations=evaluations,
        attempts=len(task.folder.attempt_numbers()),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def failed(task: StageTask, state: JobState) -> RunFailed:
    """Why the job stopped, from the ledger."""
    folder = task.folder
    numbers = folder.attempt_numbers()
    end = folder.attempt_end(numbers[-1]) if numbers else None
    why = f"{end.kind.replace('_', ' ')}: {end.message}" if end is not None else state.reason or str(state.phase)
    return RunFailed(
        f"stage {task.plan.name} of run {task.run.run_id} failed with {state.exit_code}: {why}; "
        f"`stagecoach explain {task.run.run_id}` and `stagecoach logs {task.run.run_id} --stage {task.plan.name}` say more",
        run_id=task.run.run_id,
        rank=end.first_failed_rank if end is not None else None,
        job_exit_code=state.exit_code,
        log_uri=folder.uri,
    )
