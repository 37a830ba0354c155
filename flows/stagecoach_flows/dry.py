"""`stagecoach run --dry-run`: what every stage would be asked for, and what it would cost. Writes and starts nothing."""

import json
from typing import Any

import click

from stagecoach.cli.tables import print_table
from stagecoach.contract.identity import identity_hash
from stagecoach.contract.plan import Parent
from stagecoach.contract.records import to_plain
from stagecoach.costs import HARDWARE, stage_costs
from stagecoach.launch.registry import check_launcher
from stagecoach.recipes.report import costs_json
from stagecoach.site import load_site
from stagecoach.stages.code import code_uri
from stagecoach.stages.pipeline import PipelineRequest, pin_stage, prepare_pipeline, waits_for_sibling
from stagecoach.stages.runner import StageTask, launch_spec


def dry_json(request: PipelineRequest) -> dict[str, Any]:
    """Raises what preparing raises. The plan of a stage that starts from one of this request has no checkpoint pinned yet, so the name and
    the identity in its launch spec will be others."""
    check_launcher(request.launcher)
    site = load_site()
    prepared = prepare_pipeline(request, site)
    stages = []
    for name in prepared.stages:
        plan = prepared.plan(name)
        waits = waits_for_sibling(prepared, plan)
        plan = plan if waits else pin_stage(prepared, name)
        task = StageTask(runs=prepared.runs, run=prepared.run, plan=plan, site=site, code_uri=code_uri(prepared.runs, plan.code))
        done = prepared.runs.stage(prepared.run, name).stage()
        stages.append(
            {
                "stage": name,
                "is_done": done is not None,
                "starts_from": plan.init.stage if waits and isinstance(plan.init, Parent) else None,
                "identity": identity_hash(plan),
                "plan": to_plain(plan),
                "costs": costs_json(stage_costs(plan, HARDWARE[plan.resources.hardware])),
                "launch": to_plain(launch_spec(task)),
            }
        )
    warnings = [{"path": problem.path, "says": problem.says, "do": problem.do} for problem in prepared.warnings]
    return {"format": "stagecoach.dry-run/1", "run": to_plain(prepared.run), "stages": stages, "warnings": warnings}


def print_dry(plain: dict[str, Any]) -> None:
    """Costs as a table, then each stage's plan and launch spec."""
    rows = []
    for stage in plain["stages"]:
        costs, launch = stage["costs"], stage["launch"]
        rows.append(
            (
                stage["stage"], "done" if stage["is_done"] else f"after {stage['starts_from']}" if stage["starts_from"] else "ready",
                f"{costs['steps']}", f"{launch['nodes']}x{launch['ranks_per_node']}", costs["hardware"], f"{costs['step_time_s']:.3g}",
                f"{costs['gpu_hours']:.3g}", f"{costs['memory_per_gpu']['total'] / 1e9:.2f}", f"{costs['checkpoint_bytes'] / 1e9:.3g}",
            )
        )  # fmt: skip
    columns = ("stage", "state", "steps", "ranks", "on", "s/step", "hours", "GB/rank", "GB saved")
    print_table(columns, rows, title=plain["run"]["run_id"])
    for stage in plain["stages"]:
        click.echo(f"\n# {stage['stage']}: plan")
        click.echo(json.dumps(stage["plan"], sort_keys=True))
        click.echo(f"# {stage['stage']}: launch spec")
        click.echo(json.dumps(stage["launch"], sort_keys=True))
    for warning in plain["warnings"]:
        click.echo(f"warning: {warning['path']}: {warning['says']}; {warning['do']}", err=True)
