"""A pipeline in this process, for the person who waits: through Prefect where it works, without it where it does not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click
from loguru import logger

from stagecoach.recipes import RECIPES
from stagecoach.site import load_site
from stagecoach.stages import StageResult
from stagecoach.stages.pipeline import PipelineRequest
from stagecoach_flows.embedded import prepare_prefect
from stagecoach_flows.parameters import parameters_of
from stagecoach_flows.surroundings import Surroundings, surrounded

if TYPE_CHECKING:
    from stagecoach.contract.plan import StagePlan
    from stagecoach_flows.surroundings import View


def run_in_place(request: PipelineRequest, surroundings: Surroundings) -> list[StageResult]:
    """Runs the asked stages to their end. Raises the pipeline's own errors, as they were raised, and KeyboardInterrupt between stages."""
    family = RECIPES[request.recipe].family
    parameters = parameters_of(request, family)
    if prepare_prefect(load_site()):
        click.echo("starting the embedded Prefect (some 10 s)", err=True)
    from stagecoach_flows.pipeline import plain_stage, run_pipeline
    from stagecoach_flows.pipelines import PIPELINES

    outcome = surroundings.outcome
    with surrounded(surroundings):
        try:
            PIPELINES[family](parameters)
        except Exception as error:
            if outcome.error is not None:
                raise outcome.error from None
            if outcome.is_done:
                logger.warning("Prefect did not take the end of run {}: {}: {}", request.run_id, type(error).__name__, error)
            else:
                logger.warning("Prefect failed, the run goes on without it: {}: {}", type(error).__name__, error)
                run_pipeline(parameters, run_one=plain_stage)
    return list(outcome.results)


def stage_views() -> "Callable[[str, StagePlan], AbstractContextManager[View]]":
    """The live view of the terminal."""
    from stagecoach.cli.stage_view import StageView

    return StageView
