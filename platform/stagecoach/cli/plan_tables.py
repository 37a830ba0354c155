"""Tables of `stagecoach recipes` and `stagecoach plan`. Results go to stdout, narration to stderr."""

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stagecoach.cli.tables import print_json
from stagecoach.contract.identity import identity_hash, layout_hash
from stagecoach.recipes.problems import Problem
from stagecoach.recipes.report import StageReport
from stagecoach.recipes.resolve import Resolved, difference
from stagecoach.recipes.sources import TAGS, sources_of

WIDTH = 140  # of a table where stdout is no terminal


def console() -> Console:
    """On stdout; wide enough for the tables where nobody watches."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH)


def show(*tables: Table) -> None:
    """Prints them one below the other."""
    out = console()
    for table in tables:
        out.print(table)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """The first `left` columns are text, the rest numbers."""
    made = Table(title=escape(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return made


# --- units -------------------------------------------------------------------------------------------------------------------


def count(number: float) -> str:
    """1.23 B, 45.6 M, 789."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes in decimal units."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"


def flop(number: float) -> str:
    """1.2 PFLOP."""
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}FLOP"
    return f"{number / 1e6:.3g} MFLOP"


def seconds(number: float) -> str:
    """90 s, 12 min, 3.4 h."""
    if number >= 5400:
        return f"{number / 3600:.1f} h"
    return f"{number / 60:.1f} min" if number >= 120 else f"{number:.2g} s" if number < 10 else f"{number:.0f} s"


# --- recipes -----------------------------------------------------------------------------------------------------------------


def recipes_table(listed: Sequence[dict[str, Any]]) -> Table:
    """One row a recipe."""
    made = table("Recipes", "recipe", "stages", "parameters", "active", "positions in pretrain", "hours", "on", left=2)
    for entry in listed:
        parameters, first = entry["parameters"], next(iter(entry["tokens"].values()))
        hours = f"{entry['gpu_hours']:,.0f}" if entry["gpu_hours"] >= 1 else f"{entry['gpu_hours']:.2f}"
        made.add_row(
            entry["name"],
            " → ".join(entry["stages"]),
            count(parameters["total"]),
            count(parameters["active"]),
            count(first),
            hours,
            entry["hardware"],
        )
    return made


# --- plan --------------------------------------------------------------------------------------------------------------------


def print_plan(resolved: Resolved, reports: Sequence[StageReport]) -> None:
    """Costs of all stages side by side, then what is wrong."""
    for setting in resolved.inherited:
        click.echo(f"{setting.path} follows: {setting.text}", err=True)
    show(cost_table(resolved, reports))
    print_problems([problem for one in reports for problem in one.problems])


def print_problems(problems: Sequence[Problem]) -> None:
    """One paragraph each: how bad, where, what is true, what to do."""
    if not problems:
        click.echo("no problems found", err=True)
        return
    out = console()
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        text = f"[{colour}]{problem.severity}[/] [bold]{problem.path}[/]: {escape(problem.says)}\n    {escape(problem.do)}"
        out.print(text, soft_wrap=True)


def narrate_errors(reports: Sequence[StageReport]) -> None:
    """Every error as a line on stderr, where scripts and people look for the reason of an exit status."""
    for one in reports:
        for problem in one.problems:
            if problem.severity == "error":
                click.echo(f"stagecoach: `{problem.path}` {problem.says}; {problem.do}", err=True)


def cost_table(resolved: Resolved, reports: Sequence[StageReport]) -> Table:
    """One column a stage."""
    mfu = ", ".join(sorted({f"{one.costs.hardware} at {one.costs.mfu:.0%} MFU" for one in reports if one.costs}))
    made = table(f"{resolved.plan.name} on {mfu or 'unknown hardware'}", "", *(one.plan.name for one in reports))
    columns = [stage_cells(one) for one in reports]
    for label in columns[0]:
        made.add_row(label, *(cells.get(label, "") for cells in columns))
    return made


def stage_cells(one: StageReport) -> dict[str, str]:
    """A stage's column: label -> text."""
    plan, costs = one.plan, one.costs
    cells = {"identity": identity_hash(plan)[:12], "layout": layout_hash(plan)[:12]}
    if costs is None:
        return cells
    parameters, memory, load, flops = costs.parameters, costs.memory, costs.load, costs.flops
    encoder_share = (flops.encoder + flops.connector) / flops.total
    return cells | {
        "parameters": count(parameters.total),
        "active": count(parameters.active),
        "trainable": count(parameters.trainable),
        "non-embedding N": count(parameters.non_embedding),
        "ranks": f"{plan.layout.nodes} x {plan.layout.ranks_per_node}",
        "steps": f"{costs.steps:,}",
        "rows x positions": f"{load.rows:.0f} x {plan.batch.seq_len}",
        "filled": f"{load.filled:.0%}",
        "tokens per image (typical, most)": f"{costs.image_tokens['typical']}, {costs.image_tokens['most']}",
        "encoded images per step": f"{load.tiles:,.0f}",
        "FLOPs per step": flop(flops.total),
        "of which encoder and connector": f"{encoder_share:.0%}",
        "forward, per token": flop(flops.per_position_forward),
        "forward, per encoded image": flop(flops.per_image_forward),
        "memory per rank": size(memory.total),
        "  parameters": size(memory.parameters),
        "  optimizer": size(memory.optimizer),
        "  gradients": size(memory.gradients),
        "  activations": size(memory.activations),
        "step time": seconds(costs.step_time_s),
        "rank-hours": f"{costs.gpu_hours:,.2f}" if costs.gpu_hours < 10 else f"{costs.gpu_hours:,.0f}",
        "input": f"{size(costs.input_bytes_per_s)}/s",
        "requests": f"{costs.requests_per_s:.2g}/s",
        "checkpoint": size(costs.checkpoint_bytes),
        "save: stall, in all": f"{seconds(costs.save_stall_s)}, {seconds(costs.save_time_s)}",
        "save every (planned)": seconds(plan.checkpoint.every_steps * costs.step_time_s),
        "save every (advised)": seconds(costs.advised_checkpoint_interval_s),
    }


# --- sources and difference --------------------------------------------------------------------------------------------------


def print_sources(resolved: Resolved, *, as_json: bool) -> None:
    """Every value and where it comes from."""
    found = list(sources_of(resolved))
    if as_json:
        values = [
            {"path": one.path, "value": one.value, "source": one.source.tag, "grade": one.source.grade, "where": one.source.where}
            for one in found
        ]
        tags = {tag: {"grade": grade, "what": what} for tag, (grade, what) in TAGS.items()}
        print_json({"format": "stagecoach.plan-sources/1", "name": resolved.plan.name, "tags": tags, "values": values})
        return
    made = table(f"Sources of {resolved.plan.name}", "value", "is", "source", "grade", "where, or why", left=5)
    for one in found:
        made.add_row(one.path, escape(short(one.value)), one.source.tag, one.source.grade, escape(one.source.where))
    show(made)


def print_difference(resolved: Resolved, other: Resolved, *, as_json: bool) -> None:
    """What differs, path by path."""
    found = difference(resolved.plan, other.plan)
    if as_json:
        entries = []
        for path, here, there in found:
            entry = {"path": path}
            entry |= {} if here is ... else {"here": here}
            entry |= {} if there is ... else {"there": there}
            entries.append(entry)
        print_json({"format": "stagecoach.plan-difference/1", "here": resolved.recipe, "there": other.recipe, "differences": entries})
        return
    if not found:
        click.echo(f"{resolved.recipe} and {other.recipe} do not differ", err=True)
        return
    here = resolved.recipe + (" as set" if resolved.settings or resolved.arguments else "")
    made = table(f"{here} against {other.recipe}", "value", here, other.recipe, left=3)
    for path, mine, theirs in found:
        made.add_row(path, escape(short(mine)), escape(short(theirs)))
    show(made)


def short(value: Any) -> str:
    """A value as JSON, a dash where a plan has none."""
    return "—" if value is ... else json.dumps(value, ensure_ascii=False)
