"""`stagecoach doctor`: is this cluster, with these settings, fit to train? Reads; the bucket alone is written to, and tidied."""

from typing import TYPE_CHECKING

import click

from stagecoach.cli.options import site_launcher
from stagecoach.cli.tables import Cell, print_json, print_table

if TYPE_CHECKING:
    from stagecoach.doctor.facts import Fact

NAMES = ("cluster", "kueue", "queues", "access", "images", "clock", "bucket", "grace", "prefect")
STYLES = {"ok": "green", "warning": "yellow", "bad": "bold red", "unknown": "dim"}


@click.command("doctor")
@click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root.")
@click.option(
    "--launcher",
    default=site_launcher,
    show_default="the site's, else local",
    metavar="L",
    help="Whose cluster: jobset, kubernetes; local: none.",
)
@click.option("--only", "names", type=click.Choice(NAMES), multiple=True, help="Only this; repeatable. Default: everything.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
def doctor_command(root: str | None, launcher: str, names: tuple[str, ...], as_json: bool) -> int:
    """Versions, quota against nodes, priorities, access, bucket, images, grace against saves, Prefect, clock: each with what to do.

    Exit 0: fit, with or without warnings; 1: something is bad; 2: asked wrongly.
    """
    from stagecoach.contract.records import to_plain
    from stagecoach.doctor.examine import examine
    from stagecoach.launch.registry import check_launcher
    from stagecoach.site import load_site, root_uri

    check_launcher(launcher)
    site = load_site().model_copy(update={"launcher": launcher})
    facts = list(examine(site, root_uri(root), names or NAMES))
    fit = all(fact.verdict != "bad" for fact in facts)
    if as_json:
        print_json({"format": "stagecoach.doctor/1", "fit": fit, "facts": [to_plain(fact) for fact in facts]})
    else:
        show(facts, fit=fit)
    return 0 if fit else 1


def show(facts: "list[Fact]", *, fit: bool) -> None:
    """A line each, and one at the end that says it all."""
    rows = [(fact.check, Cell(fact.verdict, STYLES[fact.verdict]), fact.fact, fact.do or "-") for fact in facts]
    print_table(("check", "verdict", "fact", "what to do"), rows)
    bad, warnings = (sum(fact.verdict == verdict for fact in facts) for verdict in ("bad", "warning"))
    verdict = "fit to train" if fit else f"not fit: {bad} to mend"
    click.secho(f"{verdict}{f'; {warnings} to think about' if warnings else ''}", fg="green" if fit else "red", bold=True)
