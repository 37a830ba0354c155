"""A whole pipeline as it was asked for: every stage resolved, its data pinned and checked, before the first one starts.

A stage's parent is pinned when its turn comes, since its checkpoint does not exist before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

from stagecoach.checkpoints.listing import COMMITTED
from stagecoach.contract.control import RunRequest
from stagecoach.contract.identity import identity_hash
from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import Runs
from stagecoach.contract.names import check_run_id, new_run_id
from stagecoach.contract.plan import Parent, PipelinePlan, StagePlan
from stagecoach.contract.records import did_you_mean
from stagecoach.errors import CheckpointError, ConfigError
from stagecoach.recipes.built import not_built
from stagecoach.recipes.problems import Problem
from stagecoach.recipes.resolve import parse_setting, resolve
from stagecoach.site import Site
from stagecoach.stages.code import Bundle, check_code
from stagecoach.stages.control import Control
from stagecoach.stages.differences import refuse_other_plan
from stagecoach.stages.parent import Depth, FoundParent, find_parent, pin_parent
from stagecoach.stages.pins import pin_data
from stagecoach.stages.request import (
    Prepared,
    StageRequest,
    check_weights,
    data_of,
    layout_settings,
    record_run,
    refuse_other_run,
    refuse_problems,
    run_record,
)


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """A recipe, or some of its stages, as it was asked for."""

    recipe: str
    root: str
    run_id: str | None = None  # None: a new one
    settings: Sequence[str] = ()
    data: str | None = None
    launcher: str = "local"
    nodes: int | None = None
    ranks_per_node: int | None = None
    stages: Sequence[str] = ()  # none: all
    from_checkpoint: str | None = None
    depth: Depth = "quick"
    code: str | None = None  # digest of the code bundle
    bundle: Bundle | None = None  # the same, where it is not in the bucket yet

    def kept(self) -> RunRequest:
        """What `request.json` keeps of it."""
        return RunRequest(
            recipe=self.recipe, settings=tuple(self.settings), data=self.data, launcher=self.launcher, nodes=self.nodes,
            ranks_per_node=self.ranks_per_node, stages=tuple(self.stages), from_checkpoint=self.from_checkpoint, verify=self.depth,
            code=self.code, at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreparedPipeline:
    """What came of a request. `plans` are the asked stages in the pipeline's order, all pinned but for their parents' checkpoints."""

    request: PipelineRequest
    runs: Runs
    run: RunRecord
    pipeline: PipelinePlan
    plans: tuple[StagePlan, ...]
    beginnings: Mapping[str, StagePlan] = field(default_factory=dict)  # those that start from no stage of the same request, all pinned
    warnings: list[Problem] = field(default_factory=list)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(plan.name for plan in self.plans)

    def plan(self, stage: str) -> StagePlan:
        return next(plan for plan in self.plans if plan.name == stage)


def request_from(kept: RunRequest, *, root: str, run_id: str) -> PipelineRequest:
    """The request that a run's `request.json` keeps."""
    return PipelineRequest(
        recipe=kept.recipe, root=root, run_id=run_id, settings=kept.settings, data=kept.data, launcher=kept.launcher, nodes=kept.nodes,
        ranks_per_node=kept.ranks_per_node, stages=kept.stages, from_checkpoint=kept.from_checkpoint, depth=kept.verify, code=kept.code,
    )  # fmt: skip


def prepare_pipeline(request: PipelineRequest, site: Site) -> PreparedPipeline:
    """Resolves, pins and checks all asked stages. Raises ConfigError (nothing was written), CheckpointError for a parent that is there
    already and does not verify."""
    run_id = check_run_id(request.run_id) if request.run_id is not None else new_run_id(request.recipe, date.today())
    refuse_code_setting(request)
    names = asked_stages(resolve(request.recipe, request.settings).plan, request.stages)
    layouts = [setting for name in names for setting in layout_settings(_of_stage(request, name))]
    resolved = resolve(request.recipe, [*request.settings, *layouts])
    refuse_not_built([resolved.plan.stage(name) for name in names])
    runs = Runs.open(request.root)
    if request.bundle is None:
        check_code(runs, request.code)
    known = runs.run(run_id)
    run = known or run_record(resolved, run_id, _of_stage(request, names[0]))
    refuse_other_run(run, resolved)
    plans, warnings = [], []
    for name in names:
        plan = pin_data(replace(resolved.plan.stage(name), code=request.code), request.data)
        check_weights(plan)
        warnings += refuse_problems(resolved.plan, plan, site)
        plans.append(plan)
    refuse_replaced_data(run, plans)
    if known is None:
        run = replace(run, data={name: pin for plan in plans for name, pin in data_of(plan).items()})
    prepared = PreparedPipeline(request=replace(request, run_id=run_id), runs=runs, run=run, pipeline=resolved.plan, plans=tuple(plans))
    prepared = replace(prepared, beginnings=check_beginnings(prepared))
    refuse_other_plans(prepared)
    return replace(prepared, warnings=[*warnings, *forgotten(prepared)])


def refuse_code_setting(request: PipelineRequest) -> None:
    """Raises ConfigError where a plan's `code` is set by hand: it is the digest of what --code packs."""
    for setting in request.settings:
        if parse_setting(setting).path.partition(".")[2] == "code":
            raise ConfigError(f"--set {setting}: a stage's own code is given with --code DIR, for all stages of the request")


def asked_stages(plan: PipelinePlan, asked: Sequence[str]) -> tuple[str, ...]:
    """The asked stages in the pipeline's order; all when none is named. Raises ConfigError with the stages there are."""
    names = [stage.name for stage in plan.stages]
    for name in asked:
        if name not in names:
            raise ConfigError(f"--stages {name!r}: recipe {plan.name} has no such stage{did_you_mean(name, names)}")
    return tuple(name for name in names if not asked or name in asked)


def refuse_not_built(plans: Sequence[StagePlan]) -> None:
    """Raises ConfigError with everything that does not exist yet, before anybody looks for its data."""
    missing = [f"{plan.name}.{path}: {what} is not built yet; {do}" for plan in plans for path, what, do in not_built(plan)]
    if missing:
        raise ConfigError(" | ".join(missing))


def check_beginnings(prepared: PreparedPipeline) -> dict[str, StagePlan]:
    """Verifies every parent that must be there before the first stage starts. Returns the plans that start from no stage of the same
    request, pinned. Raises ConfigError, CheckpointError."""
    pinned = {plan.name: pin_stage(prepared, plan.name) for plan in prepared.plans if not waits_for_sibling(prepared, plan)}
    if prepared.request.from_checkpoint is not None and not any(outside_checkpoint(prepared, plan) for plan in prepared.plans):
        raise ConfigError(
            "--from-checkpoint: no stage that was asked for starts from a stage outside of this run; name with --stages the stage that "
            "shall start from it and those after it"
        )
    return pinned


def refuse_other_plans(prepared: PreparedPipeline) -> None:
    """Raises ConfigError where the run has frozen another plan for a stage: before it is kept how the run was asked for, which `resume`
    goes by."""
    pinned = prepared.beginnings
    for plan in prepared.plans:
        frozen, asked = prepared.runs.stage(prepared.run, plan.name).plan(), pinned.get(plan.name, plan)
        if frozen is None:
            continue
        if plan.name not in pinned and isinstance(frozen.init, Parent) and frozen.init.stage == getattr(plan.init, "stage", None):
            asked = replace(plan, init=frozen.init)  # which checkpoint it is shows when its turn comes
        if identity_hash(frozen) != identity_hash(asked):
            refuse_other_plan(prepared.run.run_id, frozen, asked)


def forgotten(prepared: PreparedPipeline) -> list[Problem]:
    """A warning where the run was asked for before with what is not given now: stages that have not begun go without it."""
    kept, now = Control(prepared.runs, prepared.run.run_id).request(), prepared.request
    if kept is None:
        return []
    gone = [f"--set {setting}" for setting in kept.settings if setting not in now.settings]
    options = {
        "--data": (kept.data, now.data), "--nodes": (kept.nodes, now.nodes), "--ranks-per-node": (kept.ranks_per_node, now.ranks_per_node),
        "--from-checkpoint": (kept.from_checkpoint, now.from_checkpoint), "--code": (kept.code, now.code),
    }  # fmt: skip
    gone += [f"{name} {before}" for name, (before, given) in options.items() if before is not None and given is None]
    left_out = [name for name in asked_stages(prepared.pipeline, kept.stages) if name not in prepared.stages and not begun(prepared, name)]
    told = []
    if gone:
        says = f"was last asked for with {' '.join(gone)}, which is not given now"
        told.append((says, "stages that have not begun will go without; `stagecoach resume` goes on as it was asked for"))
    if left_out:
        says = f"was last asked for with stage {', '.join(left_out)} too, which is not asked for now"
        told.append((says, "nobody will start it until it is asked for again"))
    return [Problem(severity="warning", path=f"run {prepared.run.run_id}", says=says, do=do) for says, do in told]


def begun(prepared: PreparedPipeline, stage: str) -> bool:
    """Whether anything of it was asked of a launcher."""
    return bool(prepared.runs.stage(prepared.run, stage).submissions())


def waits_for_sibling(prepared: PreparedPipeline, plan: StagePlan) -> bool:
    """Does it start from a stage of the same request?"""
    return isinstance(plan.init, Parent) and plan.init.checkpoint is None and plan.init.stage in prepared.stages


def outside_checkpoint(prepared: PreparedPipeline, plan: StagePlan) -> str | None:
    """Where the stage starts from, if that is named: in the plan, or by --from-checkpoint for stages whose parent was not asked for."""
    if not isinstance(plan.init, Parent):
        return None
    if plan.init.checkpoint is not None:
        return plan.init.checkpoint
    return None if plan.init.stage in prepared.stages else prepared.request.from_checkpoint


def pin_stage(prepared: PreparedPipeline, stage: str) -> StagePlan:
    """The stage's plan with its parent's checkpoint found, verified and pinned. Raises ConfigError when the parent is not finished."""
    plan = prepared.plan(stage)
    found = find_parent(prepared.runs, prepared.run, plan, checkpoint=outside_checkpoint(prepared, plan))
    if found is None:
        return plan
    refuse_missing(plan, found)
    pinned = pin_parent(found, plan, depth=prepared.request.depth)
    assert isinstance(plan.init, Parent)
    assert isinstance(pinned.init, Parent)
    if plan.init.digest not in (None, pinned.init.digest):
        raise CheckpointError(
            f"{stage}.init.digest is {str(plan.init.digest)[:16]}, and {found.ref.uri} has a manifest of digest "
            f"{str(pinned.init.digest)[:16]}: it was replaced since it was pinned; restore it from a copy"
        )
    return pinned


def refuse_missing(plan: StagePlan, found: FoundParent) -> None:
    """Raises CheckpointError where the checkpoint that the plan itself names, as a fork's does, was removed since."""
    assert isinstance(plan.init, Parent)
    if plan.init.checkpoint is not None and not found.job.store.exists(f"{found.ref.key}/{COMMITTED}"):
        raise CheckpointError(
            f"{plan.name}.init.checkpoint: {found.ref.uri}/{COMMITTED} is missing: it was removed since it was named; restore it from a "
            "copy, or fork anew from a checkpoint that is there"
        )


def record_pipeline(prepared: PreparedPipeline, request: RunRequest | None = None) -> RunRecord:
    """run.json, the first stage's plan, then how it was asked for (`request`; None: as it was prepared). Before anything else of the
    run; any number of times.

    Of two callers at the same time who ask for different things one freezes its plan: the other is refused before its word is kept, which
    `resume` goes by. Raises ConfigError then.
    """
    run = record_run(Prepared(runs=prepared.runs, run=prepared.run, plan=prepared.plans[0]))
    if run.forked_from != prepared.run.forked_from:
        raise ConfigError(f"run {run.run_id} was begun by somebody else at the same time; give another --run-id")
    freeze_beginning(prepared)
    Control(prepared.runs, run.run_id).ask(request or prepared.request.kept())
    return run


def freeze_beginning(prepared: PreparedPipeline) -> None:
    """Writes the first stage's plan.json where there is none. Raises ConfigError when it is another one."""
    first = prepared.beginnings[prepared.plans[0].name]
    folder = prepared.runs.stage(prepared.run, first.name)
    frozen = None if folder.write_plan(first) else folder.plan()
    if frozen is not None and identity_hash(frozen) != identity_hash(first):
        refuse_other_plan(prepared.run.run_id, frozen, first)


def refuse_replaced_data(run: RunRecord, plans: Sequence[StagePlan]) -> None:
    """Raises ConfigError where a dataset lies where the run has pinned it, and is another one now."""
    for plan in plans:
        for name, pin in data_of(plan).items():
            before = run.data.get(name)
            if before is not None and before["uri"] == pin["uri"] and before["fingerprint"] != pin["fingerprint"]:
                raise ConfigError(
                    f"{plan.name}.data.datasets.{name}: {pin['uri']} has fingerprint {pin['fingerprint'][:16]}, and run {run.run_id} began "
                    f"with {before['fingerprint'][:16]}: it was replaced since; restore it, or begin a new run"
                )


def _of_stage(request: PipelineRequest, stage: str) -> StageRequest:
    return StageRequest(
        recipe=request.recipe, stage=stage, root=request.root, run_id=request.run_id, settings=request.settings, data=request.data,
        nodes=request.nodes, ranks_per_node=request.ranks_per_node, from_checkpoint=request.from_checkpoint, depth=request.depth,
    )  # fmt: skip
