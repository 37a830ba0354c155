"""`stagecoach compare A B`: what two runs were asked, what they came to, their losses at the same steps. Reads the bucket only."""

from typing import TYPE_CHECKING, Any

import click

from stagecoach.cli.tables import Row, print_json, print_table

if TYPE_CHECKING:
    from stagecoach.stages.compare import StageComparison


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")
@click.option("--stage", metavar="S", help="Only this stage.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else; losses at all common steps.")
def compare_command(a: str, b: str, root: str | None, stage: str | None, as_json: bool) -> int:
    """Compares runs A and B stage by stage: plans, final metrics, losses at common steps, weights."""
    from stagecoach.contract.ledger import Runs
    from stagecoach.errors import ConfigError
    from stagecoach.site import root_uri
    from stagecoach.stages.compare import compare_runs

    found = compare_runs(Runs.open(root_uri(root)), a, b)
    if stage is not None:
        names = [one.stage for one in found]
        found = [one for one in found if one.stage == stage]
        if not found:
            raise ConfigError(f"--stage {stage!r}: the runs have in common {', '.join(names)}")
    if as_json:
        print_json({"format": "stagecoach.comparison/1", "a": a, "b": b, "stages": [plain(one) for one in found]})
        return 0
    for one in found:
        print_stage(one, a, b)
    return 0


def plain(one: "StageComparison") -> dict[str, Any]:
    """A stage's comparison in plain values."""
    return {
        "stage": one.stage,
        "state": list(one.state),
        "plan": [{"path": path, "a": mine, "b": theirs} for path, mine, theirs in one.plan],
        "metrics": [{"name": name, "a": mine, "b": theirs} for name, mine, theirs in one.metrics],
        "losses": [{"step": step, "a": mine, "b": theirs} for step, mine, theirs in one.losses],
        "first_difference": one.first_difference,
        "same_weights": one.same_weights,
    }


def print_stage(one: "StageComparison", a: str, b: str) -> None:
    """Three short tables, each only where there is something in it."""
    from stagecoach.contract.records import shortened
    from stagecoach.stages.compare import thinned

    weights = {True: "the same weights", False: "other weights", None: "not both finished"}[one.same_weights]
    click.echo(f"\n{one.stage}: {a} {one.state[0]}, {b} {one.state[1]}; {weights}")
    if one.plan:
        plans: list[Row] = [(path, shortened(str(mine)), shortened(str(theirs))) for path, mine, theirs in one.plan]
        print_table(("plan", a, b), plans)
    if one.metrics:
        print_table(("metric", a, b, "B - A"), [(name, number(x), number(y), change(x, y)) for name, x, y in one.metrics])
    if one.losses:
        same = f"equal at all {len(one.losses)} common steps" if one.first_difference is None else (
            f"first differ at step {one.first_difference}, at most by {one.largest_difference:.4g}"
        )  # fmt: skip
        click.echo(f"losses: {same}")
        print_table(("step", a, b, "B - A"), [(str(step), number(x), number(y), change(x, y)) for step, x, y in thinned(one.losses)])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def change(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{b - a:+.4g}"
