"""`stagecoach run-stage`: one stage of a recipe through the stage runner, without Prefect."""

from typing import TYPE_CHECKING, Any

import click

from stagecoach.cli.options import Address, site_launcher
from stagecoach.cli.tables import print_json
from stagecoach.constants import ExitCode
from stagecoach.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from stagecoach.stages.request import Prepared, StageRequest
    from stagecoach.stages.runner import StageResult


@click.command("run-stage")
@click.argument("recipe")
@click.option("--stage", required=True, metavar="S", help="Which stage of the recipe.")
@click.option("--run-id", metavar="ID", help="Of the run it belongs to. The same id again attaches or goes on; default: a new one.")
@click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")
@click.option(
    "--data",
    type=Address(),
    metavar="URI",
    help="Root of a made corpus (`stagecoach data make URI`); datasets named in the plan win over it.",
)
@click.option(
    "--launcher",
    default=site_launcher,
    show_default="the site's, else local",
    metavar="L",
    help="Where it runs: local, jobset, kubernetes, ray.",
)
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Default: the recipe's.")
@click.option("--ranks-per-node", type=click.IntRange(1), metavar="N", help="Default: the recipe's.")
@click.option(
    "--from-checkpoint",
    type=Address(),
    metavar="URI",
    help="Start from this stage's or checkpoint's folder, not from the run's own parent stage.",
)
@click.option("--verify", "depth", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
              help="Of checkpoints: sizes and stored checksums, or every byte.")  # fmt: skip
@click.option("--after-fatal", is_flag=True, help="Run again after a fatal exit (40-49): its cause was removed.")
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Override a value of the plan; repeatable (`plan --help`).")
@click.option("--dry-run", is_flag=True, help="Print plan and launch spec as JSON; write and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="The finished stage (stagecoach.stage/1) on stdout and nothing else.")
def run_stage_command(launcher: str, depth: Any, after_fatal: bool, dry_run: bool, as_json: bool, root: str | None, **asked: Any) -> int:
    """Runs one stage of RECIPE: freezes its plan, submits the job or attaches to it, watches, verifies, writes stage.json.

    Run the same command again after anything: a finished stage is left alone, a running one is attached to, a stopped one goes on.
    Exit: 0 done, 2 asked wrongly (nothing was written), else the job's own code.
    """
    from stagecoach.site import load_site, root_uri
    from stagecoach.stages.request import StageRequest, prepare

    site = load_site()
    request = StageRequest(root=root_uri(root), depth=depth, **asked)
    check_launcher(launcher, request)
    prepared = prepare(request, site)
    for warning in prepared.warnings:
        click.echo(f"warning: {warning.path}: {warning.says}; {warning.do}", err=True)
    if dry_run:
        print_json(dry(prepared, launcher))
        return 0
    try:
        result = carry_out(prepared, launcher, request, after_fatal=after_fatal)
    except RunFailed as error:
        click.echo(f"stagecoach: {error}", err=True)
        return error.job_exit_code or 1
    show(result, as_json=as_json)
    return 0


def check_launcher(name: str, request: "StageRequest") -> None:
    """Raises ConfigError for a launcher that does not exist, before data is looked at."""
    from stagecoach.launch.registry import get_launcher

    get_launcher(name, ranks=(request.nodes or 1) * (request.ranks_per_node or 1))


def dry(prepared: "Prepared", launcher: str) -> dict[str, Any]:
    """What would be written and asked for; with a launcher that can say it, exactly what it would create."""
    from stagecoach.contract.records import to_plain
    from stagecoach.launch.registry import get_launcher
    from stagecoach.launch.submit import with_number
    from stagecoach.site import load_site
    from stagecoach.stages.runner import StageTask, launch_spec

    task = StageTask(runs=prepared.runs, run=prepared.run, plan=prepared.plan, site=load_site())
    spec = launch_spec(task)
    build = getattr(get_launcher(launcher), "build", None)
    created = {"object": build(with_number(spec, 1))} if build is not None else {}
    return {"run": to_plain(prepared.run), "plan": to_plain(prepared.plan), "launch": to_plain(spec), **created}


def carry_out(prepared: "Prepared", launcher: str, request: "StageRequest", *, after_fatal: bool) -> "StageResult":
    """Submits or attaches, and watches. Ctrl-C stops the watching and says how to come back; twice within 3 s cancels."""
    from stagecoach.cli.stage_view import StageView
    from stagecoach.launch.registry import get_launcher
    from stagecoach.site import load_site
    from stagecoach.stages import StageTask, run_stage
    from stagecoach.stages.control import Control
    from stagecoach.stages.request import record_run

    run = record_run(prepared)
    Control(prepared.runs, run.run_id).lift("cancel")
    chosen = get_launcher(launcher, ranks=prepared.plan.layout.ranks)
    with StageView(run.run_id, prepared.plan) as view:
        task = StageTask(
            runs=prepared.runs, run=run, plan=prepared.plan, site=load_site(), depth=request.depth, after_fatal=after_fatal,
            on_state=view.state, on_poll=view.poll,
        )  # fmt: skip
        try:
            return run_stage(task, chosen)
        except KeyboardInterrupt:
            if view.wants_cancel():
                cancel(task.folder, chosen)
                says = f"run {run.run_id}, stage {prepared.plan.name}: cancelled"
                raise RunFailed(says, run_id=run.run_id, job_exit_code=ExitCode.STOPPED) from None
            raise ConfigError(
                f"no longer watching; the job goes on. The same command with --run-id {run.run_id} attaches to it, "
                f"`stagecoach status {run.run_id}` shows it"
            ) from None


def cancel(folder: Any, launcher: Any) -> None:
    """Cancels the open submission."""
    submissions = folder.submissions()
    handle = launcher.attach(submissions[-1].name) if submissions else None
    if handle is not None:
        launcher.cancel(handle)


def show(result: "StageResult", *, as_json: bool) -> None:
    """The hand-over, for a person or a program."""
    from stagecoach.cli.tables import write_json
    from stagecoach.contract.records import encode

    manifest = result.manifest
    if as_json:
        write_json(encode(manifest).decode())
        return
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items())[:6])
    click.echo(f"{'finished before' if result.was_done else 'done'}: {manifest.run_id}/{manifest.stage}, step {manifest.steps}")
    click.echo(f"checkpoint: {manifest.checkpoint.uri}\nweights:    {manifest.weights_digest}")
    if metrics:
        click.echo(f"metrics:    {metrics}")
