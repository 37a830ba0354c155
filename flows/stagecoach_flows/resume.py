"""The scheduled flow that finds runs which should be running and are not, and runs them again."""

from typing import Any

from loguru import logger
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from stagecoach.contract.ledger import Runs
from stagecoach.recipes import RECIPES
from stagecoach.site import root_uri
from stagecoach.stages.pipeline import request_from
from stagecoach.stages.recover import Abandoned, find_abandoned
from stagecoach_flows.parameters import ResumeParameters, RunParameters, parameters_of
from stagecoach_flows.pipelines import PIPELINES

DEPLOYMENT = "stagecoach"  # the name that `stagecoach deploy` gives each flow's deployment
MOST_CRASHES = 50  # in a row, of a run's controllers before their first beat


@flow(name="resume", persist_result=False)
def resume(parameters: ResumeParameters = ResumeParameters()) -> list[str]:  # noqa: B008
    """Runs what nobody watches again: through the pipeline's deployment where there is one, else in this process. Returns their ids."""
    root = root_uri(parameters.root)
    only = [parameters.run_id] if parameters.run_id is not None else None
    found = find_abandoned(Runs.open(root), watch_s=parameters.watch_s, only=only)
    return [run.run_id for run in found if started(run, root)]


def started(run: Abandoned, root: str) -> bool:
    """Whether somebody takes the run up again. What one run fails with is told in the log, and the others are not made to wait for it."""
    logger.info("run {} should be running stage {} and nobody watches it", run.run_id, run.stage)
    try:
        return start(run, root)
    except Exception as error:  # of the pipeline in this process, or of Prefect: the next visit tries again
        logger.warning("run {} was not resumed: {}: {}", run.run_id, type(error).__name__, error)
        return False


def start(run: Abandoned, root: str) -> bool:
    """Once for each abandonment, however often this flow comes by before a worker takes it; and once more for each time that what was
    started so crashed before its first beat. One that failed said what a person must do, and is not started again."""
    family = RECIPES[run.request.recipe].family
    parameters: RunParameters = parameters_of(request_from(run.request, root=root, run_id=run.run_id), family)
    pipeline = PIPELINES[family]
    plain: dict[str, Any] = {"parameters": parameters.model_dump(mode="json")}
    for crashes in range(MOST_CRASHES):
        key = f"resume-{run.run_id}-{run.stage}-{run.beat}" + (f"-{crashes}" if crashes else "")
        try:
            made = run_deployment(f"{pipeline.name}/{DEPLOYMENT}", parameters=plain, timeout=0, as_subflow=False, idempotency_key=key)
        except ObjectNotFound:
            pipeline(parameters)
            return True
        assert isinstance(made, FlowRun)  # a coroutine only inside of an event loop
        if made.state is None or not made.state.is_crashed():
            return True
    logger.error("run {}: {} controllers in a row crashed before they did anything; look at the last one's log", run.run_id, MOST_CRASHES)
    return False
