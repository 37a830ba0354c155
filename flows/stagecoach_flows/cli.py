"""`stagecoach run`, `resume`, `deploy`. Prefect is imported when a run starts, not before."""

from typing import TYPE_CHECKING, Any

import click

from stagecoach.cli.options import Address, site_launcher

if TYPE_CHECKING:
    from stagecoach.stages import StageResult
    from stagecoach.stages.code import Bundle
    from stagecoach.stages.pipeline import PipelineRequest

root_option = click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")


@click.command("run")
@click.argument("recipe")
@root_option
@click.option("--run-id", metavar="ID", help="The same id again attaches to the run or goes on with it; default: a new one.")
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
    help="Where jobs run: local, jobset, kubernetes, ray.",
)
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Of every stage. Default: the recipe's.")
@click.option("--ranks-per-node", type=click.IntRange(1), metavar="N", help="Of every stage. Default: the recipe's.")
@click.option("--stages", metavar="A,B", help="Only these stages; default: all.")
@click.option(
    "--from-checkpoint", type=Address(), metavar="URI", help="Start the first of --stages from this folder of a stage or a checkpoint."
)
@click.option("--code", metavar="DIR", help="Your own code: put first on the ranks' PYTHONPATH; part of the run's identity.")
@click.option("--verify", "depth", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
              help="Of checkpoints: sizes and stored checksums, or every byte.")  # fmt: skip
@click.option("--after-fatal", is_flag=True, help="Run again after a fatal exit (40-49): its cause was removed.")
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Override a value of the plan; repeatable (`plan --help`).")
@click.option("--dry-run", is_flag=True, help="Show all stages' plans, costs and launch specs; write and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
def run_command(
    root: str | None, stages: str | None, code: str | None, depth: Any, after_fatal: bool, dry_run: bool, as_json: bool, **asked: Any
) -> int:
    """Runs RECIPE stage by stage as a Prefect flow in this process: pre-training, and what the recipe has after it.

    Needs no server: Prefect is embedded, unless PREFECT_API_URL (or the site) names one. Run the same command with the run's id again
    after anything: finished stages are left alone, a running job is attached to, a stopped one goes on. Ctrl-C stops the watching, twice
    cancels. Exit: 0 done, 2 asked wrongly (nothing was written), else the failed job's own code.
    """
    from stagecoach.site import root_uri
    from stagecoach.stages.pipeline import PipelineRequest

    uri = root_uri(root)
    names = tuple(name.strip() for name in stages.split(",")) if stages is not None else ()
    bundle = bundle_of(code)
    request = PipelineRequest(root=uri, stages=names, depth=depth, code=bundle.digest if bundle else None, bundle=bundle, **asked)
    if dry_run:
        return show_dry(request, as_json=as_json)
    return carry_out(request, after_fatal=after_fatal, as_json=as_json)


@click.command("resume")
@click.argument("run")
@root_option
@click.option("--launcher", metavar="L", help="Another launcher than the run was last asked for with.")
@click.option("--after-fatal", is_flag=True, help="Run again after a fatal exit (40-49): its cause was removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
def resume_command(run: str, root: str | None, launcher: str | None, after_fatal: bool, as_json: bool) -> int:
    """Goes on with RUN as it was asked for: attaches to what runs, submits what does not, leaves alone what is finished."""
    from dataclasses import replace

    from stagecoach.contract.ledger import Runs
    from stagecoach.site import root_uri
    from stagecoach.stages.control import request_of
    from stagecoach.stages.pipeline import request_from

    uri = root_uri(root)
    request = request_from(request_of(Runs.open(uri), run), root=uri, run_id=run)
    if launcher is not None:
        request = replace(request, launcher=launcher)
    return carry_out(request, after_fatal=after_fatal, as_json=as_json)


@click.command("deploy")
@click.option("--site", "site_file", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Default: STAGECOACH_SITE.")
@click.option(
    "--pool-type", default="process", show_default=True, metavar="T", help="Of the work pool, if it is not there: process, kubernetes."
)
@click.option(
    "--webhook",
    envvar="STAGECOACH_NOTICE_WEBHOOK",
    metavar="URL",
    help="Told of failed, pending and stalled runs. A secret: better in the environment.",
)
@click.option(
    "--silent",
    "silent_s",
    type=click.FloatRange(min=90),
    default=90,
    show_default=True,
    metavar="S",
    help="Without a flow's heartbeat: it crashed.",
)
@click.option(
    "--pending",
    "pending_s",
    type=click.FloatRange(min=10),
    default=3600,
    show_default=True,
    metavar="S",
    help="A job without a machine: a notice.",
)
@click.option(
    "--stalled",
    "stalled_s",
    type=click.FloatRange(min=10),
    default=1800,
    show_default=True,
    metavar="S",
    help="Without a new step: a notice.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
def deploy_command(
    site_file: str | None, pool_type: str, webhook: str | None, silent_s: float, pending_s: float, stalled_s: float, as_json: bool
) -> int:
    """Registers work pool, deployments, schedules and automations with the Prefect server at PREFECT_API_URL (or the site's).

    Run it again after anything: nothing is doubled. A worker then takes the flows: `prefect worker start --pool stagecoach`.
    """
    import os

    from stagecoach.cli.tables import print_json
    from stagecoach.errors import ConfigError
    from stagecoach.site import load_site
    from stagecoach_flows.embedded import prepare_prefect

    if site_file is not None:
        os.environ["STAGECOACH_SITE"] = site_file
    site = load_site()
    if not (os.environ.get("PREFECT_API_URL") or site.prefect_api_url):
        raise ConfigError("no Prefect server is named: set PREFECT_API_URL, or prefect_api_url in the site file")
    prepare_prefect(site)
    from stagecoach_flows.automations import Deadlines
    from stagecoach_flows.deploy import deploy_or_say

    deadlines = Deadlines(silent_s=silent_s, pending_s=pending_s, stalled_s=stalled_s)
    made = deploy_or_say(site, pool_type=pool_type, deadlines=deadlines, webhook=webhook)
    if as_json:
        print_json({"pool": made.pool, "deployments": made.deployments, "automations": made.automations})
        return 0
    click.echo(f"work pool {made.pool}; deployments {', '.join(sorted(made.deployments))}")
    click.echo(f"automations: {'; '.join(sorted(name.removeprefix('stagecoach: ') for name in made.automations))}")
    return 0


def bundle_of(folder: str | None) -> "Bundle | None":
    """The folder's code, packed; nothing is written yet."""
    if folder is None:
        return None
    from pathlib import Path

    from stagecoach.errors import ConfigError
    from stagecoach.stages.code import build_bundle

    if not folder.strip():
        raise ConfigError("--code: no folder is named; give one, or leave --code out")

    built = build_bundle(Path(folder))
    click.echo(f"code: {len(built.files)} files, {len(built.body):,} bytes, digest {built.digest[:16]}", err=True)
    return built


def carry_out(request: "PipelineRequest", *, after_fatal: bool, as_json: bool) -> int:
    """Prepares first, so that what is asked wrongly is told before Prefect starts; then runs, and shows what came of it."""
    from stagecoach.contract.ledger import Runs
    from stagecoach.contract.names import check_run_id
    from stagecoach.errors import RunFailed, StagecoachError
    from stagecoach.site import load_site
    from stagecoach.stages.code import store_bundle
    from stagecoach.stages.control import Control
    from stagecoach.stages.pipeline import prepare_pipeline
    from stagecoach_flows.in_place import run_in_place, stage_views
    from stagecoach_flows.surroundings import Surroundings, launcher_of

    runs, cancelled = Runs.open(request.root), None
    if request.run_id is not None:
        control = Control(runs, check_run_id(request.run_id))
        control.check_unpaused()
        cancelled = control.held()
    prepared = prepare_pipeline(request, load_site())
    for plan in prepared.plans:
        launcher_of(request.launcher, plan.layout.ranks)
    if request.bundle is not None:
        store_bundle(runs, request.bundle)
    run_id = prepared.run.run_id
    Control(runs, run_id).lift("cancel")  # here and not when it begins: one that comes meanwhile counts
    click.echo(f"run {run_id}: {' → '.join(prepared.stages)}, kept under {request.root}", err=True)
    surroundings = Surroundings(view=stage_views(), after_fatal=after_fatal)
    try:
        results = run_in_place(prepared.request, surroundings)
    except RunFailed as error:
        click.echo(f"stagecoach: {error}", err=True)
        return error.job_exit_code or 1
    except KeyboardInterrupt:
        if cancelled is not None and surroundings.outcome.run_id is None:
            raise StagecoachError(f"stopped before run {run_id} went on; it stays cancelled") from None
        if runs.run(run_id) is None:
            raise StagecoachError(f"stopped before run {run_id} began; nothing was written") from None
        raise StagecoachError(f"stopped between two steps of run {run_id}; `stagecoach resume {run_id}` goes on with it") from None
    finally:
        if cancelled is not None and surroundings.outcome.run_id is None:  # nothing was begun: it stays as it was
            Control(runs, run_id).put_back(cancelled)
    show(run_id, results, as_json=as_json)
    return 0


def show(run_id: str, results: "list[StageResult]", *, as_json: bool) -> None:
    """The hand-over of every stage, for a person or a program."""
    from stagecoach.cli.tables import print_json, print_table
    from stagecoach.contract.records import to_plain

    if as_json:
        stages = [to_plain(result.manifest) for result in results]
        print_json({"format": "stagecoach.run-result/1", "run": run_id, "stages": stages})
        return
    rows = [
        (
            result.manifest.stage, "finished before" if result.was_done else "done", f"{result.manifest.steps}",
            f"{result.manifest.attempts}", f"{result.manifest.metrics.get('loss', float('nan')):.4f}", result.manifest.weights_digest[:16],
        )
        for result in results
    ]  # fmt: skip
    print_table(("stage", "", "steps", "attempts", "loss", "weights"), rows, title=run_id)
    for result in results:
        click.echo(f"{result.manifest.stage}: {result.manifest.checkpoint.uri}")


def show_dry(request: "PipelineRequest", *, as_json: bool) -> int:
    """Plans, costs and launch specs of all stages."""
    from stagecoach_flows.dry import dry_json, print_dry

    plain = dry_json(request)
    if as_json:
        from stagecoach.cli.tables import print_json

        print_json(plain)
    else:
        print_dry(plain)
    return 0
