"""`stagecoach cancel`, `pause`, `unpause`, `fork`: acting on a run. What was asked stands in the bucket before a job is touched."""

from typing import TYPE_CHECKING, Any

import click

from stagecoach.cli.options import Address
from stagecoach.cli.tables import print_json

if TYPE_CHECKING:
    from stagecoach.contract.ledger import Runs

root_option = click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Kept with it, for whoever looks later.")


@click.command("cancel")
@click.argument("run")
@root_option
@reason_option
def cancel_command(run: str, root: str | None, reason: str) -> int:
    """Ends the jobs of RUN, which save first within their grace period, and submits nothing more. `stagecoach resume RUN` goes on."""
    return stop(run, root, "cancel", reason)


@click.command("pause")
@click.argument("run")
@root_option
@reason_option
def pause_command(run: str, root: str | None, reason: str) -> int:
    """Frees the machines of RUN until `stagecoach unpause RUN`: its jobs save, and end or (jobset, kubernetes) wait without a place."""
    return stop(run, root, "pause", reason)


@click.command("unpause")
@click.argument("run")
@root_option
def unpause_command(run: str, root: str | None) -> int:
    """Lets RUN go on. A job that was kept trains as soon as it has a place; what comes after it, and a job that was ended, are started by
    the scheduled `resume` flow, or by `stagecoach resume RUN`."""
    from stagecoach.launch.registry import get_launcher
    from stagecoach.stages.act import unpause

    done = unpause(open_runs(root), run, launcher_of=get_launcher)
    queued = f"; waits for a place: {', '.join(done.stages)}" if done.stages else ""
    click.echo(f"{run}: {'no longer paused' if done.was_paused else 'was not paused'}{queued}; `stagecoach resume {run}` goes on with it")
    return 0


@click.command("fork")
@click.argument("run")
@root_option
@click.option("--stage", required=True, metavar="S", help="The stage whose checkpoint it begins with.")
@click.option("--at", type=click.IntRange(0), metavar="STEP", help="A committed step; default: the newest.")
@click.option("--run-id", "new_run_id", metavar="ID", help="Of the new run; default: a new one.")
@click.option("--data", type=Address(), metavar="URI", help="Root of a made corpus; default: the other run's.")
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Wins over the other run's setting of that path; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
def fork_command(run: str, root: str | None, as_json: bool, **asked: Any) -> int:
    """Makes a new run whose stage S begins with the weights of RUN's checkpoint, pinned; its schedule and optimizer begin anew.

    Nothing is started: `stagecoach resume NEW` does that.
    """
    from stagecoach.contract.records import to_plain
    from stagecoach.site import load_site
    from stagecoach.stages.fork import ForkRequest, fork

    made = fork(open_runs(root), ForkRequest(run_id=run, **asked), load_site())
    for warning in made.warnings:
        click.echo(f"warning: {warning.path}: {warning.says}; {warning.do}", err=True)
    if as_json:
        print_json(to_plain(made.run))
    else:
        click.echo(f"{made.run.run_id}: {' → '.join(made.stages)} from {made.run.forked_from}")
        click.echo(f"start it with `stagecoach resume {made.run.run_id}{f' --root {root}' if root else ''}`", err=True)
    return 0


def stop(run: str, root: str | None, kind: Any, reason: str) -> int:
    """Holds the run and ends its jobs."""
    from stagecoach.launch.registry import get_launcher
    from stagecoach.stages.act import stop_run

    done = stop_run(open_runs(root), run, kind, launcher_of=get_launcher, reason=reason)
    word = {"cancel": "cancelled", "pause": "paused"}[kind]
    parts = [f"{word}: {', '.join(stages)}" for word, stages in (("ended", done.stages), ("keeps its job", done.kept)) if stages]
    what = "; ".join(parts) or "nothing ran"
    click.echo(f"{run}: {word if done.is_new else f'was {word} before'}; {what}")
    return 0


def open_runs(root: str | None) -> "Runs":
    from stagecoach.contract.ledger import Runs
    from stagecoach.site import root_uri

    return Runs.open(root_uri(root))
