"""`stagecoach recipes` and `stagecoach plan`: what there is, and what it costs. Neither starts or writes anything."""

import click

from stagecoach.cli.options import Seconds
from stagecoach.cli.tables import print_json


@click.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout and nothing else.")
def recipes_command(as_json: bool) -> None:
    """Lists the recipes: stages, parameters, tokens."""
    from stagecoach.cli.plan_tables import recipes_table, show
    from stagecoach.recipes import RECIPES
    from stagecoach.recipes.report import recipe_json

    listed = [recipe_json(name) for name in RECIPES]
    if as_json:
        print_json(listed)
    else:
        show(recipes_table(listed))


@click.command("plan")
@click.argument("recipe")
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Override a value; repeatable. See below.")
@click.option("--hardware", metavar="NAME", help="Cost all stages for h100, h200 or cpu instead of the recipe's own.")
@click.option("--grace", "grace_s", metavar="SECONDS", type=Seconds(min=0, min_open=True),
              help="Grace period of the cluster, which a save is held against; default: the site's.")  # fmt: skip
@click.option("--sources", "with_sources", is_flag=True, help="Where every value comes from, with its grade.")
@click.option("--diff", "other", metavar="RECIPE", help="What differs from another recipe (or from the same one without --set).")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
@click.pass_context
def plan_command(
    ctx: click.Context,
    recipe: str,
    settings: tuple[str, ...],
    hardware: str | None,
    grace_s: float | None,
    with_sources: bool,
    other: str | None,
    as_json: bool,
) -> None:
    """Resolves, checks and costs RECIPE. Starts nothing, writes nothing, needs no GPU.

    \b
    --set pretrain.optimizer.peak_lr=6e-5          a field, by its dotted path from the stage's name
    --set pretrain.steps=10                        short for pretrain.duration.steps
    --set sft.data.mixture.weights.sft_math=0.1    an entry of a list, by its name
    --set connector=perceiver --set edition=2025   an argument of the recipe: one of the paper's axes

    What is set under STAGE.model.encoder, .connector or .decoder also holds for the stages that start from that one.

    Everything is printed whatever is wrong with the plan. Exit: 0 it can work (warnings or none), 1 it does not fit the hardware or
    asks for something that is not built yet, 2 a setting is wrong.
    """
    from stagecoach.cli import plan_tables as tables
    from stagecoach.recipes.report import exit_code, plan_json, report
    from stagecoach.recipes.resolve import resolve
    from stagecoach.site import load_site

    if with_sources and other is not None:
        raise click.UsageError("--sources and --diff are two questions; ask one at a time")
    resolved = resolve(recipe, settings, hardware=hardware)
    if other is not None:
        tables.print_difference(resolved, resolve(other), as_json=as_json)
        return
    if with_sources:
        tables.print_sources(resolved, as_json=as_json)
        return
    reports = report(resolved, grace_s=load_site().grace_s if grace_s is None else grace_s)
    if as_json:
        print_json(plan_json(resolved, reports))
    else:
        tables.print_plan(resolved, reports)
    tables.narrate_errors(reports)
    ctx.exit(exit_code(reports))
