"""A pipeline in this process, for the person who waits: through Prefect where it works, without it where it does not."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import click
from loguru import logger

from stagecoach.recipes import RECIPES
from stagecoach.site import load_site
from stagecoach.stages import StageResult
from stagecoach.stages.pipeline import PipelineRequest
from stagecoach_flows.embedded import embedded_server, prepare_prefect
from stagecoach_flows.parameters import parameters_of
from stagecoach_flows.surroundings import Surroundings, surrounded

DRAIN_S = 5.0
TAG = "stagecoach-run-in-place"  # of runs that no worker started: a server tells when one failed, and lets whoever started it resume it

if TYPE_CHECKING:
    from stagecoach.contract.plan import StagePlan
    from stagecoach_flows.surroundings import View


def run_in_place(request: PipelineRequest, surroundings: Surroundings) -> list[StageResult]:
    """Runs the asked stages to their end. Raises the pipeline's own errors, as they were raised, and KeyboardInterrupt between stages."""
    family = RECIPES[request.recipe].family
    parameters, outcome = parameters_of(request, family), surroundings.outcome
    with surrounded(surroundings):
        try:
            with prefect_at_hand():
                from prefect import tags

                from stagecoach_flows.pipelines import PIPELINES

                with tags(TAG):
                    PIPELINES[family](parameters, return_state=True)
        except Exception as error:
            if outcome.error is None:
                logger.warning("Prefect failed: {}: {}", type(error).__name__, error)
        if outcome.error is not None:
            raise outcome.error
        if not outcome.is_done:
            from stagecoach_flows.pipeline import plain_stage, run_pipeline

            logger.warning("run {} goes on without Prefect", request.run_id)
            run_pipeline(parameters, run_one=plain_stage)
    return list(outcome.results)


@contextmanager
def prefect_at_hand() -> Iterator[None]:
    """Prefect imported, and a server that answers: the one that is named, else our own."""
    if not prepare_prefect(load_site()):
        yield
        return
    click.echo("starting the embedded Prefect (some 10 s)", err=True)
    with embedded_server() as server:
        import stagecoach_flows.pipelines  # noqa: F401 - while the server starts, which takes as long

        server.wait()
        try:
            yield
        finally:
            hand_over_events()


def hand_over_events() -> None:
    """Prefect sends its last events when the process ends, which is after our server's end: then it would try again and again."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=DRAIN_S, at_exit=False)


def stage_views() -> "Callable[[str, StagePlan], AbstractContextManager[View]]":
    """The live view of the terminal."""
    from stagecoach.cli.stage_view import StageView

    return StageView
