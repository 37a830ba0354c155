"""The scheduled flow that finds runs which should be running and are not, and runs them again."""

from typing import Any

from loguru import logger
from prefect import flow
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


@flow(name="resume", persist_result=False)
def resume(parameters: ResumeParameters = ResumeParameters()) -> list[str]:  # noqa: B008
    """Runs what nobody watches again: through the pipeline's deployment where there is one, else in this process. Returns their ids."""
    root = root_uri(parameters.root)
    only = [parameters.run_id] if parameters.run_id is not None else None
    found = find_abandoned(Runs.open(root), watch_s=parameters.watch_s, only=only)
    for run in found:
        logger.info("run {} should be running stage {} and nobody watches it", run.run_id, run.stage)
        start(run, root)
    return [run.run_id for run in found]


def start(run: Abandoned, root: str) -> None:
    """Once for each abandonment, however often this flow comes by before a worker takes it."""
    family = RECIPES[run.request.recipe].family
    parameters: RunParameters = parameters_of(request_from(run.request, root=root, run_id=run.run_id), family)
    pipeline = PIPELINES[family]
    plain: dict[str, Any] = {"parameters": parameters.model_dump(mode="json")}
    key = f"resume-{run.run_id}-{run.stage}-{run.beat}"
    try:
        run_deployment(f"{pipeline.name}/{DEPLOYMENT}", parameters=plain, timeout=0, as_subflow=False, idempotency_key=key)
    except ObjectNotFound:
        pipeline(parameters)
