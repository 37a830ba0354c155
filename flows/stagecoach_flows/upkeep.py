"""`evaluate` and `gc`: what is done for runs that are finished, or beside those that are not."""

from typing import Any

from loguru import logger
from prefect import flow

from stagecoach.checkpoints.gc import STALE_UPLOAD_S, collect
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.site import load_site, root_uri
from stagecoach.stages import StageTask
from stagecoach.stages.act import run_of
from stagecoach.stages.code import code_uri
from stagecoach.stages.control import Control
from stagecoach_flows.parameters import EvaluateParameters, GcParameters
from stagecoach_flows.surroundings import current


@flow(name="evaluate", flow_run_name="{parameters.run_id}-{parameters.stage}", persist_result=False)
def evaluate(parameters: EvaluateParameters) -> dict[str, str]:
    """Evaluates a stage's final checkpoint on its suites, those that have no scores yet. Returns suite -> URI."""
    runs = Runs.open(root_uri(parameters.root))
    run = run_of(runs, parameters.run_id)
    if parameters.stage not in run.stages:
        raise ConfigError(f"stage {parameters.stage!r}: run {run.run_id} has {', '.join(run.stages)}")
    folder = runs.stage(run, parameters.stage)
    plan, result = folder.plan(), folder.result()
    if plan is None or result is None:
        raise ConfigError(f"stage {parameters.stage} of run {run.run_id} has not been trained to its end; run it first")
    request = Control(runs, run.run_id).request()
    around = current()
    launcher = around.launcher(request.launcher if request is not None else load_site().launcher, plan.layout.ranks)
    code = code_uri(runs, plan.code)  # else another model would be asked than the one that was trained
    task = StageTask(runs=runs, run=run, plan=plan, site=load_site(), poll_s=around.poll_s, code_uri=code)
    hook = around.evaluation(task, launcher, request.data if request is not None else None)
    return hook(folder, plan, result) if hook is not None else {}


@flow(name="gc", persist_result=False)
def gc(parameters: GcParameters = GcParameters()) -> dict[str, Any]:  # noqa: B008
    """Removes checkpoints that nobody keeps, pins or reads. Jobs that run are left alone: they collect their own."""
    runs = Runs.open(root_uri(parameters.root))
    removed, num_bytes = 0, 0
    for run_id in [parameters.run_id] if parameters.run_id is not None else runs.ids():
        try:
            run = run_of(runs, run_id)
            for stage in run.stages:
                done = collect_stage(runs.stage(run, stage), dry_run=parameters.dry_run)
                removed, num_bytes = removed + done[0], num_bytes + done[1]
        except StagecoachError as error:
            logger.warning("run {} is passed over: {}", run_id, error)
    return {"would_remove": removed} if parameters.dry_run else {"removed": removed, "bytes": num_bytes}


def collect_stage(folder: JobFolder, *, dry_run: bool) -> tuple[int, int]:
    """(checkpoints that go or would go, bytes freed) of one stage at rest. Each is told in the log, and why."""
    plan, submissions = folder.plan(), folder.submissions()
    state = folder.submission_state(submissions[-1].submission) if submissions else None
    if plan is None or state is None or state.state != "ended":
        return 0, 0
    keeping = plan.checkpoint
    done = collect(folder, keep=keeping.keep, keep_every_steps=keeping.keep_every_steps, dry_run=dry_run, stale_upload_s=STALE_UPLOAD_S)
    for decision in done.decisions:
        if decision.remove and (dry_run or decision.ref in done.removed):
            logger.info("{} {}: {}", decision.ref.uri, "would go" if dry_run else "went", decision.why)
    return sum(decision.remove for decision in done.decisions) if dry_run else len(done.removed), done.num_bytes
