"""From what a person asks for to a `StageTask`: everything that can be wrong is found here, before anything is written or started."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path

from stagecoach import __version__
from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import Runs
from stagecoach.contract.names import check_run_id, new_run_id
from stagecoach.contract.plan import PipelinePlan, Pretrained, StagePlan
from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError
from stagecoach.recipes.problems import Problem, check_stage
from stagecoach.recipes.resolve import Resolved, resolve
from stagecoach.site import Site
from stagecoach.stages.parent import Depth, find_parent, pin_parent
from stagecoach.stages.pins import pin_data
from stagecoach.storage import open_store


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """One stage of a recipe, as it was asked for."""

    recipe: str
    stage: str
    root: str
    run_id: str | None = None  # None: a new one
    settings: Sequence[str] = ()
    data: str | None = None  # root of a made corpus
    nodes: int | None = None
    ranks_per_node: int | None = None
    from_checkpoint: str | None = None
    depth: Depth = "quick"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What came of a request. Nothing is written yet: `record_run` is the first that does."""

    runs: Runs
    run: RunRecord
    plan: StagePlan
    warnings: list[Problem] = field(default_factory=list)


def prepare(request: StageRequest, site: Site) -> Prepared:
    """Resolves, pins and checks. Raises ConfigError (nothing was written), CheckpointError for a parent that does not verify."""
    run_id = check_run_id(request.run_id) if request.run_id is not None else new_run_id(request.recipe, date.today())
    resolved = resolve(request.recipe, [*request.settings, *layout_settings(request)])
    stage = stage_of(resolved.plan, request.stage)
    runs = Runs.open(request.root)
    known = runs.run(run_id)
    run = known or run_record(resolved, run_id, request)
    refuse_other_run(run, resolved)
    parent = find_parent(runs, run, stage, checkpoint=request.from_checkpoint)
    pinned = pin_data(stage, request.data)
    check_weights(pinned)
    if parent is not None:
        pinned = pin_parent(parent, pinned, depth=request.depth)
    warnings = refuse_problems(resolved.plan, pinned, site)
    if known is None:
        run = replace(run, data=data_of(pinned))
    return Prepared(runs=runs, run=run, plan=pinned, warnings=warnings)


def record_run(prepared: Prepared) -> RunRecord:
    """run.json, before anything else of the run. Another caller may have been faster: then it must be the same run."""
    if prepared.runs.create(prepared.run):
        return prepared.run
    found = prepared.runs.run(prepared.run.run_id)
    assert found is not None
    if (found.recipe, found.stages) != (prepared.run.recipe, prepared.run.stages):
        raise other_run(found, prepared.run.recipe)
    return found


def layout_settings(request: StageRequest) -> list[str]:
    """--nodes and --ranks-per-node as settings of the stage."""
    asked = {"nodes": request.nodes, "ranks_per_node": request.ranks_per_node}
    return [f"{request.stage}.layout.{name}={value}" for name, value in asked.items() if value is not None]


def stage_of(plan: PipelinePlan, name: str) -> StagePlan:
    """Raises ConfigError with the stages there are."""
    names = [stage.name for stage in plan.stages]
    if name not in names:
        raise ConfigError(f"--stage {name!r}: recipe {plan.name} has no such stage{did_you_mean(name, names)}")
    return plan.stage(name)


def run_record(resolved: Resolved, run_id: str, request: StageRequest) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        recipe=resolved.recipe,
        pipeline=resolved.plan.name,
        stages=tuple(stage.name for stage in resolved.plan.stages),
        overrides=tuple(request.settings),
        versions={"stagecoach": __version__},
        forked_from=request.from_checkpoint,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def data_of(plan: StagePlan) -> dict[str, dict[str, str]]:
    """What `run.json` pins: dataset -> {uri, fingerprint}."""
    return {d.name: {"uri": d.uri, "fingerprint": d.fingerprint} for d in plan.data.datasets if d.uri and d.fingerprint}


def refuse_other_run(run: RunRecord, resolved: Resolved) -> None:
    if (run.recipe, run.stages) != (resolved.recipe, tuple(stage.name for stage in resolved.plan.stages)):
        raise other_run(run, resolved.recipe)


def other_run(run: RunRecord, recipe: str) -> ConfigError:
    """The id belongs to another run."""
    return ConfigError(
        f"--run-id {run.run_id}: that run is of recipe {run.recipe} (stages {', '.join(run.stages)}), and {recipe} was asked for; "
        "give another --run-id, or leave it away for a new one"
    )


def check_weights(plan: StagePlan) -> None:
    """Pre-trained folders are there, before GPUs are asked for. Raises ConfigError."""
    if not isinstance(plan.init, Pretrained):
        return
    for part in ("encoder", "decoder"):
        uri = getattr(plan.init, part)
        if uri is None:
            continue
        path = f"{plan.name}.init.{part}"
        if uri.startswith("hf://"):
            raise ConfigError(
                f"{path} = {uri}: nothing is downloaded when a job runs; copy the Hugging Face folder to the bucket and set "
                f"--set {path}=s3://bucket/folder, or --set {path}=null to start that part at random"
            )
        folder = uri if "://" in uri else f"file://{Path(uri).absolute()}"
        if not open_store(folder).exists("config.json"):
            raise ConfigError(f"{path} = {uri}: no config.json there; name a Hugging Face folder (config.json and *.safetensors)")


def refuse_problems(pipeline: PipelinePlan, plan: StagePlan, site: Site) -> list[Problem]:
    """Warnings of the pinned plan. Raises ConfigError with every error."""
    stages = tuple(plan if stage.name == plan.name else stage for stage in pipeline.stages)
    problems = check_stage(replace(pipeline, stages=stages), plan, site.grace_s)
    errors = [f"{problem.path}: {problem.says}; {problem.do}" for problem in problems if problem.severity == "error"]
    if errors:
        raise ConfigError(f"stage {plan.name} cannot run: " + " | ".join(errors))
    return [problem for problem in problems if problem.severity == "warning"]
