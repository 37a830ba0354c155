"""`stagecoach runs`, `status`, `logs`, `explain`: what the bucket says.

Nothing is written, but for the end of an attempt that `explain` finds dead with its job.
"""

from typing import TYPE_CHECKING

import click

from stagecoach.cli.options import Seconds
from stagecoach.cli.tables import print_json, print_table, visible, write_json
from stagecoach.errors import ConfigError

if TYPE_CHECKING:
    from stagecoach.contract.launch import LogLine
    from stagecoach.contract.ledger import JobFolder
    from stagecoach.explain.records import Explanation
    from stagecoach.explain.resolve import Place, Target

FOLLOW_S = 1.0
WAIT_S = 3.0  # the supervisor publishes progress every 2 s

root_option = click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")
stage_option = click.option("--stage", metavar="S", help="One stage of the run; default: the one that matters now.")
wait_option = click.option(
    "--wait", "wait_s", type=Seconds(min=0), default=WAIT_S, show_default=True, metavar="S",
    help="How long to watch whether a heartbeat moves, where an attempt has no end.",
)  # fmt: skip


@click.command("runs")
@root_option
@json_option
def runs_command(root: str | None, as_json: bool) -> None:
    """Lists runs and other jobs, with where each of them is."""
    from stagecoach.cli.listing import list_all
    from stagecoach.contract.ledger import Runs
    from stagecoach.explain.facts import gather
    from stagecoach.explain.resolve import PERSON
    from stagecoach.site import root_uri

    uri = root_uri(root)
    listed = list_all(Runs.open(uri, settings=PERSON), gather)
    if as_json:
        print_json([entry.plain() for entry in listed])
    elif not listed:
        click.echo(f"no runs and no jobs under {uri}", err=True)
    else:
        columns = ("run", "recipe or kind", "stage", "state", "step", "attempts", "created")
        print_table(columns, [entry.row() for entry in listed])


@click.command("status")
@click.argument("run")
@root_option
@stage_option
@wait_option
@json_option
def status_command(run: str, root: str | None, stage: str | None, wait_s: float, as_json: bool) -> None:
    """Shows every stage of RUN (or one job): where it is, its last step and commit, how it goes."""
    from stagecoach.cli.listing import status_row
    from stagecoach.contract.records import to_plain
    from stagecoach.explain.cluster import view_of_launcher
    from stagecoach.explain.facts import gather
    from stagecoach.explain.verdict import explain, explain_each, explain_stage

    facts = gather(_whole(run, root, stage), view_of=view_of_launcher, wait_s=wait_s)
    said = explain(facts) if stage is None else explain_stage(facts, stage)
    each = explain_each(facts) if stage is None else [said]
    if as_json:
        print_json({"format": "stagecoach.status/1", "run": facts.name, "uri": facts.uri, "jobs": [to_plain(said) for said in each]})
        return
    columns = ("stage", "state", "attempt", "step", "of", "committed", "lost", "left", "phase")
    print_table(columns, [status_row(said) for said in each], title=facts.name)
    _narrate(said.sentence)


@click.command("explain")
@click.argument("run")
@root_option
@stage_option
@wait_option
@click.option("--bucket-only", is_flag=True, help="Do not ask the launcher.")
@json_option
def explain_command(run: str, root: str | None, stage: str | None, wait_s: float, bucket_only: bool, as_json: bool) -> None:
    """Says in one sentence why RUN is pending or why it stopped, what was lost, and what happens next.

    The bucket is read first; the launcher refines what it leaves open, where it can be reached.
    """
    from stagecoach.contract.records import encode
    from stagecoach.explain.cluster import view_of_launcher
    from stagecoach.explain.facts import gather
    from stagecoach.explain.verdict import explain, explain_stage

    facts = gather(_whole(run, root, stage), view_of=None if bucket_only else view_of_launcher, wait_s=wait_s)
    said = explain(facts) if stage is None else explain_stage(facts, stage)
    if as_json:
        write_json(encode(said).decode())
        return
    click.echo(visible(said.sentence))
    _narrate(_sources(said))
    for bad in said.unreadable:
        _narrate(f"cannot be read: {bad.says}")


@click.command("logs")
@click.argument("run")
@root_option
@stage_option
@click.option("--rank", metavar="R", help="One rank, or `supervisor`; default: all of them.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="One attempt; default: all of them.")
@click.option("--follow", "-f", is_flag=True, help="Goes on until the job has ended; lags by the 15 s after which segments are cut.")
def logs_command(run: str, root: str | None, stage: str | None, rank: str | None, attempt: int | None, follow: bool) -> None:
    """Prints the log of RUN, all ranks merged; every line begins with its attempt and rank."""
    import time

    from stagecoach.explain.logs import LogReader, has_ended

    place = _place(_find(run, root, stage), chosen=stage)
    known = place.folder.attempt_numbers()
    if attempt is not None and attempt not in known and not follow:
        raise ConfigError(f"{run} has no attempt {attempt}; it has: {', '.join(map(str, known)) or 'none'}")
    wanted = _rank(rank)
    if wanted is not None and not follow:
        _check_rank(place.folder, wanted, known if attempt is None else [attempt])
    reader = LogReader(place.folder, rank=wanted, attempt=attempt)
    printed = 0
    while True:
        is_last_look = not follow or has_ended(place.folder)
        printed += sum(_print_line(line) for line in reader.new_lines())
        if is_last_look:
            break
        time.sleep(FOLLOW_S)
    printed += sum(_print_line(line) for line in reader.last_lines())
    if not printed:
        _narrate(f"no log lines of {place.name} yet; `stagecoach explain {run}` says where it is")


def _find(run: str, root: str | None, stage: str | None) -> "Target":
    """What RUN names. Raises ConfigError (exit 2) with the nearest names."""
    from stagecoach.explain.resolve import find, only_stage
    from stagecoach.site import root_uri

    target = find(run, root=root_uri(root))
    return target if stage is None else only_stage(target, stage)


def _whole(run: str, root: str | None, stage: str | None) -> "Target":
    """What RUN names with all its stages, which tell where one of them stands. Raises ConfigError as `_find` does."""
    from stagecoach.explain.resolve import only_stage

    target = _find(run, root, None)
    if stage is not None:
        only_stage(target, stage)
    return target


def _place(target: "Target", *, chosen: str | None) -> "Place":
    """The one job whose log is meant. Says which it took when the run has several."""
    from stagecoach.explain.facts import gather
    from stagecoach.explain.verdict import explain

    if target.unreadable:
        raise ConfigError(target.unreadable[0].says)
    if not target.places:
        raise ConfigError(f"{target.name} was recorded without any stage; there is no log")
    if len(target.places) == 1:
        return target.places[0]
    said = explain(gather(target))
    place = next((place for place in target.places if place.name == said.stage), target.places[0])
    if chosen is None:
        _narrate(f"stage {place.name}; others with --stage: {', '.join(other.name for other in target.places if other is not place)}")
    return place


def _rank(rank: str | None) -> int | None:
    from stagecoach.contract.names import whole_number
    from stagecoach.explain.logs import SUPERVISOR_RANK

    if rank is None:
        return None
    if rank == "supervisor":
        return SUPERVISOR_RANK
    number = whole_number(rank)
    if number is None:
        raise ConfigError(f"--rank {rank!r}: a rank's number from 0, or `supervisor`")
    return number


def _check_rank(folder: "JobFolder", rank: int, attempts: list[int]) -> None:
    """Raises ConfigError when none of the attempts had such a rank; before the first attempt nobody knows."""
    starts = (folder.attempt_start(number) for number in attempts)
    ranks = max((start.world_size for start in starts if start is not None), default=0)
    if 0 < ranks <= rank:
        raise ConfigError(f"--rank {rank}: no attempt had that rank; there are 0 to {ranks - 1}, and `supervisor`")


def _print_line(line: "LogLine") -> int:
    from stagecoach.explain.logs import prefix, readable

    colours = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
    mark = click.style(prefix(line), fg="red" if line.rank < 0 else colours[line.rank % len(colours)])
    for part in readable(line.text).split("\n"):
        click.echo(f"{mark} | {part}")  # click drops the colour where stdout is no terminal
    return 1


def _sources(said: "Explanation") -> str:
    """Which sources the answer rests on."""
    unreachable = said.cluster_reason if len(said.read_from) == 1 and said.launcher and said.cluster_phase is None else ""
    return f"read from: {', '.join(said.read_from)}" + (f" ({said.launcher}: {unreachable})" if unreachable else "")


def _narrate(text: str) -> None:
    click.echo(visible(text), err=True)
