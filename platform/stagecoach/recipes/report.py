"""A resolved recipe, costed and checked, as plain data: what `stagecoach plan --json` prints."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stagecoach.contract.identity import identity_hash, layout_hash
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import to_plain
from stagecoach.costs import HARDWARE, StageCosts, stage_costs
from stagecoach.recipes import RECIPES, recipe_function
from stagecoach.recipes.problems import Problem, check_stage
from stagecoach.recipes.resolve import Resolved


@dataclass(frozen=True, kw_only=True, slots=True)
class StageReport:
    """One stage. `costs` is None only when its hardware is not known."""

    plan: StagePlan
    costs: StageCosts | None
    problems: tuple[Problem, ...]


def report(resolved: Resolved, *, grace_s: float) -> list[StageReport]:
    """Every stage costed and checked."""
    reports = []
    for stage in resolved.plan.stages:
        machine = HARDWARE.get(stage.resources.hardware)
        costs = stage_costs(stage, machine) if machine else None
        problems = tuple(check_stage(resolved.plan, stage, grace_s, costs))
        reports.append(StageReport(plan=stage, costs=costs, problems=problems))
    return reports


def exit_code(reports: Sequence[StageReport]) -> int:
    """2 when a setting is wrong; 1 when the plan is right but cannot run: it does not fit, or something is not built yet; else 0."""
    causes = {problem.cause for one in reports for problem in one.problems if problem.severity == "error"}
    if "setting" in causes:
        return 2
    return 1 if causes else 0


def stage_json(one: StageReport) -> dict[str, Any]:
    """The plan's fields, its two hashes, its costs and its problems (interfaces.md section 3)."""
    plain: dict[str, Any] = to_plain(one.plan)
    plain |= {"identity": identity_hash(one.plan), "layout_hash": layout_hash(one.plan)}
    plain["problems"] = [
        {"severity": problem.severity, "path": problem.path, "says": problem.says, "do": problem.do} for problem in one.problems
    ]
    return plain | (costs_json(one.costs) if one.costs else {})


def costs_json(costs: StageCosts) -> dict[str, Any]:
    """Costs by the names of the contract, and what else there is to know."""
    parameters, memory, flops = costs.parameters, costs.memory, costs.flops
    kinds = ("parameters", "optimizer", "gradients", "activations", "total")
    return {
        "hardware": costs.hardware,
        "mfu": costs.mfu,
        "steps": costs.steps,
        "parameters": asdict(parameters),
        "tokens_per_image": costs.image_tokens,
        "rows_per_step": costs.load.rows,
        "samples_per_step": costs.load.samples,
        "tokens_per_step": costs.load.positions,
        "images_per_step": costs.load.tiles,
        "fill": costs.load.filled,
        "flops_per_step": flops.total,
        "flops": {**{part: getattr(flops, part) for part in ("encoder", "connector", "decoder", "attention", "head")}},
        "flops_per_token_forward": flops.per_position_forward,
        "flops_per_image_forward": flops.per_image_forward,
        "memory_per_gpu": {kind: round(getattr(memory, kind)) for kind in kinds},
        "step_time_s": costs.step_time_s,
        "gpu_hours": costs.gpu_hours,
        "input_bytes_per_s": costs.input_bytes_per_s,
        "requests_per_s": costs.requests_per_s,
        "checkpoint_bytes": costs.checkpoint_bytes,
        "save_stall_s": costs.save_stall_s,
        "save_time_s": costs.save_time_s,
        "advised_checkpoint_interval_s": costs.advised_checkpoint_interval_s,
    }


def plan_json(resolved: Resolved, reports: Sequence[StageReport]) -> dict[str, Any]:
    """The whole pipeline."""
    return {
        "format": "stagecoach.plan-report/1",
        "name": resolved.plan.name,
        "family": resolved.plan.family,
        "arguments": dict(resolved.arguments),
        "settings": [setting.text for setting in resolved.settings],
        "followed": [{"path": setting.path, "value": setting.value} for setting in resolved.inherited],
        "stages": [stage_json(one) for one in reports],
        "gpu_hours": sum(one.costs.gpu_hours for one in reports if one.costs),
    }


def recipe_json(name: str) -> dict[str, Any]:
    """One line of `stagecoach recipes --json`."""
    entry, plan = RECIPES[name], recipe_function(name)()
    costs = [stage_costs(stage, HARDWARE[stage.resources.hardware]) for stage in plan.stages]
    parameters = costs[0].parameters
    return {
        "name": name,
        "family": entry.family,
        "miniature": entry.miniature,
        "is_miniature": entry.is_miniature,
        "stages": [stage.name for stage in plan.stages],
        "parameters": {"total": parameters.total, "active": parameters.active, "non_embedding": parameters.non_embedding},
        "tokens": {stage.name: cost.load.positions * cost.steps for stage, cost in zip(plan.stages, costs, strict=True)},
        "gpu_hours": sum(cost.gpu_hours for cost in costs),
        "hardware": costs[0].hardware,
        "says": (recipe_function(name).__doc__ or "").strip().partition("\n")[0],
    }
