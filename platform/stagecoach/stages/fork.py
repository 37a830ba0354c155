"""A new run that begins where another one was: one of its committed checkpoints, pinned, with other settings.

The forked stage takes the weights and begins its own schedule and optimizer; the stages after it follow. The other run stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stagecoach.checkpoints import CheckpointRef, latest
from stagecoach.checkpoints.holds import pin
from stagecoach.checkpoints.listing import State, list_checkpoints
from stagecoach.checkpoints.verify import verify
from stagecoach.contract.control import RunRequest
from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.names import check_run_id
from stagecoach.contract.plan import Parent, PipelinePlan
from stagecoach.errors import ConfigError
from stagecoach.recipes.resolve import parse_setting, resolve
from stagecoach.site import Site
from stagecoach.stages.act import run_of
from stagecoach.stages.control import Control
from stagecoach.stages.pipeline import PreparedPipeline, prepare_pipeline, record_pipeline, request_from


@dataclass(frozen=True, kw_only=True)
class ForkRequest:
    """`at`: the step of the checkpoint; None is the newest one."""

    run_id: str
    stage: str
    at: int | None = None
    new_run_id: str | None = None
    settings: Sequence[str] = ()
    data: str | None = None


def fork(runs: Runs, request: ForkRequest, site: Site) -> PreparedPipeline:
    """Records the new run; starts nothing. Raises ConfigError and CheckpointError, nothing is written then."""
    run = run_of(runs, request.run_id)
    if request.stage not in run.stages:
        raise ConfigError(f"--stage {request.stage!r}: run {run.run_id} has the stages {', '.join(run.stages)}")
    folder = runs.stage(run, request.stage)
    ref = checkpoint_of(folder, request.at)
    if request.new_run_id is not None:
        refuse_existing(runs, check_run_id(request.new_run_id), ref)
    digest = verify(folder, ref, level="quick").digest
    kept = Control(runs, run.run_id).request() or _kept_of(run)
    pinned = [f"{request.stage}.init.{key}={value}" for key, value in _init(request.stage, ref, digest).items()]
    wanted = replace(
        request_from(kept, root=runs.store.uri, run_id=run.run_id),
        run_id=request.new_run_id,
        settings=later_wins([*_without_init(kept.settings, request.stage), *layouts_of(kept, run.stages), *pinned], request.settings),
        nodes=None,
        ranks_per_node=None,
        data=request.data or kept.data,
        stages=(),
        from_checkpoint=None,
    )
    after = descendants(resolve(wanted.recipe, wanted.settings).plan, request.stage)
    asked = {request.stage, *(kept.stages or run.stages), *(name for name in after if runs.stage(run, name).plan() is not None)}
    prepared = prepare_pipeline(replace(wanted, stages=tuple(name for name in after if name in asked)), site)
    pin(folder, ref, run_id=prepared.run.run_id)  # before the run is there to be started: gc may come between
    prepared = replace(prepared, run=replace(prepared.run, forked_from=ref.uri))
    record_pipeline(prepared)
    return prepared


def refuse_existing(runs: Runs, name: str, ref: CheckpointRef) -> None:
    """Raises ConfigError when there is such a run, but for the same fork whose caller died before it was kept how it was asked for."""
    known = runs.run(name)
    if known is not None and (known.forked_from != ref.uri or Control(runs, name).request() is not None):
        raise ConfigError(f"--run-id {name}: that run exists; `stagecoach resume` goes on with it, or give another name")


def checkpoint_of(folder: JobFolder, at: int | None) -> CheckpointRef:
    """The committed checkpoint of that step. Raises ConfigError with the steps there are."""
    if at is None:
        newest = latest(folder)
        if newest is None:
            raise ConfigError(f"{folder.uri} has no committed checkpoint to fork from")
        return newest
    good = [found.ref for found in list_checkpoints(folder) if found.state == State.COMMITTED]
    for ref in reversed(good):
        if ref.step == at:
            return ref
    steps = ", ".join(str(step) for step in sorted({ref.step for ref in good}))
    raise ConfigError(f"--at {at}: no committed checkpoint of that step in {folder.uri}; there are steps {steps or 'none'}")


def descendants(plan: PipelinePlan, stage: str) -> tuple[str, ...]:
    """The stage and those that start from it, directly or not, in order."""
    found = [stage]
    for one in plan.stages:
        if isinstance(one.init, Parent) and one.init.stage in found and one.name not in found:
            found.append(one.name)
    return tuple(found)


def later_wins(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Settings of the other run, but for those that are set anew, by themselves or by a setting of all that they are a part of."""
    anew = {parse_setting(text).path for text in after}

    def is_kept(path: str) -> bool:
        return not any(path == one or path.startswith(f"{one}.") for one in anew)

    return (*(text for text in before if is_kept(parse_setting(text).path)), *after)


def layouts_of(kept: RunRequest, stages: Sequence[str]) -> list[str]:
    """The other run's --nodes and --ranks-per-node as settings, which --set can win over."""
    asked = {"nodes": kept.nodes, "ranks_per_node": kept.ranks_per_node}
    return [f"{stage}.layout.{name}={value}" for stage in stages for name, value in asked.items() if value is not None]


def _without_init(settings: Sequence[str], stage: str) -> list[str]:
    """A fork of a fork begins at its own checkpoint."""
    return [text for text in settings if not parse_setting(text).path.startswith(f"{stage}.init")]


def _init(stage: str, ref: CheckpointRef, digest: str) -> dict[str, str]:
    return {"kind": "parent", "stage": stage, "checkpoint": ref.uri, "digest": digest}


def _kept_of(run: RunRecord) -> RunRequest:
    """For a run that `run-stage` began: it keeps no request."""
    return RunRequest(recipe=run.recipe, settings=run.overrides, at=run.created_at)
