"""What every pipeline flow does: prepare all stages, then run one after another, each as a Prefect task.

Everything that counts is in the bucket, so the whole body may be run again at any time, by anyone, and finds what is done. Prefect orders,
retries and shows. When it cannot be reached the body goes on without it: a stage never fails because Prefect did.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loguru import logger
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Cancelled as CancelledState
from prefect.tasks import Task

from stagecoach.contract.launch import Launcher, NameTaken
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ClusterUnavailable, StagecoachError
from stagecoach.site import load_site
from stagecoach.stages import StageResult, StageTask, run_stage
from stagecoach.stages.act import cancel_open, jobs_of_stage
from stagecoach.stages.code import code_uri
from stagecoach.stages.control import Control, Heartbeat, RunHeld
from stagecoach.stages.differences import OtherPlan
from stagecoach.stages.pipeline import PipelineRequest, PreparedPipeline, pin_stage, prepare_pipeline, record_pipeline
from stagecoach.storage.errors import ObjectChanged, StoreUnavailable
from stagecoach_flows.artifacts import Publisher
from stagecoach_flows.drawing import write_report
from stagecoach_flows.parameters import RunParameters
from stagecoach_flows.surroundings import Surroundings, View, current

HEALED_BY_TIME = (ClusterUnavailable, StoreUnavailable, ObjectChanged)


class StoppedWatching(StagecoachError):
    """The person who watched pressed Ctrl-C; the job goes on."""


class Cancelled(StagecoachError):
    """The person who watched pressed Ctrl-C twice; the job was cancelled."""


class Pipeline:
    """One pipeline under way. No dataclass: Prefect must take it as it is, and not look inside for futures."""

    def __init__(self, request: PipelineRequest, surroundings: Surroundings) -> None:
        """Nothing is written before all of it is found right. Raises what `prepare_pipeline` raises."""
        self.surroundings, self.outcome, self.site = surroundings, surroundings.outcome, load_site()
        prepared = prepare_pipeline(request, self.site)
        for warning in prepared.warnings:
            logger.warning("{}: {}; {}", warning.path, warning.says, warning.do)
        for plan in prepared.plans:
            surroundings.launcher(request.launcher, plan.layout.ranks)
        self.control = Control(prepared.runs, prepared.run.run_id)
        self.asked, self.asked_before = prepared.request.kept(), self.control.request()
        self.run = record_pipeline(prepared, self.asked)
        self.prepared: PreparedPipeline = replace(prepared, run=self.run)
        self.outcome.run_id = self.run.run_id
        self.beat = Heartbeat(self.control)
        self.publisher = Publisher(self.prepared)

    def stage(self, name: str) -> StageResult:
        """One stage to its end, or attached to and watched to its end. Raises what `run_stage` raises, StoppedWatching and Cancelled."""
        prepared, around = self.prepared, self.surroundings
        plan = pin_stage(prepared, name)
        launcher = around.launcher(prepared.request.launcher, plan.layout.ranks)
        with around.view(self.run.run_id, plan) as view:

            def on_poll(folder: JobFolder) -> None:
                self.beat(name)
                view.poll(folder)
                self.publisher.poll(name)

            stage = StageTask(
                runs=prepared.runs, run=self.run, plan=plan, site=self.site, depth=prepared.request.depth,
                after_fatal=around.after_fatal, on_state=view.state, on_poll=on_poll, poll_s=around.poll_s,
                code_uri=code_uri(prepared.runs, plan.code),
            )  # fmt: skip
            try:
                if self.control.held() is None:
                    self.beat(name)
                result = run_stage(stage, launcher, evaluate=around.evaluation(stage, launcher, prepared.request.data))
            except KeyboardInterrupt:
                raise after_interrupt(self.control, stage, launcher, view) from None
            except (OtherPlan, NameTaken):  # somebody else's run: it goes on as they asked for it
                self.control.take_back(self.asked, self.asked_before)
                raise
            finally:
                self.publisher.poll(name, at_once=True)
        return result


def after_interrupt(control: Control, stage: StageTask, launcher: Launcher, view: View) -> StagecoachError:
    """Ctrl-C: what happens, as the error to raise. A second one within 3 s cancels the job and holds the run."""
    run_id = control.run_id
    if view.wants_cancel():
        control.hold("cancel", "Ctrl-C twice")
        for _, folder in jobs_of_stage(stage.plan.name, stage.folder):
            cancel_open(folder, launcher)
        return Cancelled(f"run {run_id}, stage {stage.plan.name}: cancelled; `stagecoach resume {run_id}` goes on with it")
    return StoppedWatching(
        f"no longer watching run {run_id}; the job of stage {stage.plan.name} goes on, and no later stage starts before somebody resumes "
        f"the run (a deployed `resume` flow does). "
        f"`stagecoach resume {run_id}` comes back, `stagecoach watch {run_id}` only looks"
    )


def heals(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage is tried again: only what time heals. A wrong setting, a damaged checkpoint, a job that failed for good: never."""
    try:
        state.result()
    except HEALED_BY_TIME as error:
        logger.warning("stage {} is tried again after a pause: {}", run.name, error)  # in place, Prefect's own lines are not shown
        return True
    except BaseException:
        return False
    return False


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=heals)
def stage_task(pipeline: Pipeline, name: str) -> StageResult:
    """Idempotent: a finished stage verifies and is left alone, a running one is attached to."""
    return remembered(pipeline, name)


def remembered(pipeline: Pipeline, name: str) -> StageResult:
    """Keeps the pipeline's own error, where Prefect cannot cover it with one of its own."""
    pipeline.outcome.error = None
    try:
        return pipeline.stage(name)
    except BaseException as error:
        pipeline.outcome.error = error
        raise


def run_stage_task(pipeline: Pipeline, name: str) -> StageResult:
    """The stage as a Prefect task; without Prefect where Prefect fails."""
    delays = list(pipeline.surroundings.retry_delays_s)
    pipeline.outcome.error = None
    try:
        configured = stage_task.with_options(retries=len(delays), retry_delay_seconds=delays)
        return configured(pipeline, name)
    except Exception as error:
        if pipeline.outcome.error is not None:
            raise pipeline.outcome.error from None
        logger.warning("Prefect failed, the run goes on without it: {}: {}", type(error).__name__, error)
        return plain_stage(pipeline, name)


def plain_stage(pipeline: Pipeline, name: str) -> StageResult:
    """The stage, tried again as Prefect would."""
    for delay in pipeline.surroundings.retry_delays_s:
        try:
            return remembered(pipeline, name)
        except HEALED_BY_TIME as error:
            logger.warning("stage {} is tried again in {:g} s: {}", name, delay, error)
            time.sleep(delay)
    return remembered(pipeline, name)


def run_pipeline(parameters: RunParameters, *, run_one: Callable[[Pipeline, str], StageResult] = run_stage_task) -> list[dict[str, Any]]:
    """All asked stages in order. Returns a summary per stage. Raises what their stages raise; nothing later is started then."""
    surroundings = current()
    outcome = surroundings.outcome
    outcome.results.clear()
    pipeline = begun(parameters, surroundings)
    try:
        for name in pipeline.prepared.stages:
            outcome.results.append(run_one(pipeline, name))
        outcome.is_done = True
        return [summary(result) for result in outcome.results]
    finally:
        if outcome.is_done or has_failed(outcome.error):
            leave_report(pipeline.prepared)
        pipeline.publisher.close(outcome)


def has_failed(error: BaseException | None) -> bool:
    """Whether the run came to an end that somebody will ask about: not one that a person stopped, who waits for the prompt."""
    return isinstance(error, StagecoachError) and not isinstance(error, StoppedWatching | Cancelled | RunHeld)


def leave_report(prepared: PreparedPipeline) -> None:
    """The page that the run's link leads to, whatever the run came to. One that cannot be made is told in the log and fails nothing."""
    try:
        logger.info("report: {}", write_report(prepared))
    except Exception as error:  # the run is what it is; `stagecoach report` says what is wrong with the page
        logger.warning("the report of run {} was not written: {}: {}", prepared.run.run_id, type(error).__name__, error)


def run_as_flow(parameters: RunParameters) -> Any:
    """The same as a flow's body: a run that somebody stopped ends as CANCELLED, not as FAILED, which would call for help."""
    try:
        return run_pipeline(parameters)
    except (RunHeld, StoppedWatching, Cancelled) as error:
        current().outcome.error = error
        return CancelledState(message=str(error))


def begun(parameters: RunParameters, surroundings: Surroundings) -> Pipeline:
    """The pipeline, prepared and recorded. Its errors are the pipeline's own, never Prefect's."""
    try:
        return Pipeline(parameters.request(run_id=run_id_of_flow(parameters.recipe)), surroundings)
    except BaseException as error:
        surroundings.outcome.error = error
        raise


def run_id_of_flow(recipe: str) -> str | None:
    """A run id that stays the same when Prefect runs the same flow run again; None outside of a flow."""
    flow_run_id = flow_run.get_id()
    if flow_run_id is None:
        return None
    from stagecoach.contract.names import suggest_run_id

    return suggest_run_id(f"{recipe}-{str(flow_run_id).replace('-', '')[:12]}")


def summary(result: StageResult) -> dict[str, Any]:
    """A finished stage in plain values."""
    manifest = result.manifest
    return {
        "stage": manifest.stage, "was_done": result.was_done, "steps": manifest.steps, "tokens": manifest.tokens,
        "attempts": manifest.attempts, "checkpoint": manifest.checkpoint.uri, "weights_digest": manifest.weights_digest,
        "metrics": dict(manifest.metrics), "evaluations": dict(manifest.evaluations),
    }  # fmt: skip
