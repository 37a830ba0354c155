"""`stagecoach watch`: a run as it goes, from the bucket alone. Nothing is written, and leaving changes nothing."""

import sys
import time
from typing import TYPE_CHECKING

import click

from stagecoach.cli.options import Seconds
from stagecoach.cli.read import root_option, stage_option
from stagecoach.cli.tables import visible

if TYPE_CHECKING:
    from stagecoach.cli.watch_state import Seen, Watcher

LOOK_S = 1.0
LINE_S = 10.0


@click.command("watch")
@click.argument("run")
@root_option
@stage_option
@click.option("--once", is_flag=True, help="Prints how it is now and ends.")
@click.option(
    "--every", "every_s", type=Seconds(min=0.1), metavar="S",
    help=f"How often: the bucket is read ({LOOK_S:g}, on a terminal), or a line printed ({LINE_S:g}, elsewhere).",
)  # fmt: skip
def watch_command(run: str, root: str | None, stage: str | None, once: bool, every_s: float | None) -> int:
    """Shows RUN while it goes: progress, loss, speed, what is left, where the time went, its attempts. RUN may be the URI of a job.

    Ends when the run does, with its exit code; Ctrl-C leaves earlier, and the run goes on. Without a terminal: plain lines.
    """
    from stagecoach.cli.watch_state import Watcher, explain_now
    from stagecoach.errors import ConfigError
    from stagecoach.explain.resolve import find, only_stage
    from stagecoach.site import root_uri

    whole = find(run, root=root_uri(root))
    target = whole if stage is None else only_stage(whole, stage)
    if target.unreadable:
        raise ConfigError(target.unreadable[0].says)
    if not target.places:
        raise ConfigError(f"{target.name} was recorded without any stage; there is nothing to watch")
    watcher = Watcher(target, explain_target=lambda _: explain_now(whole, stage))
    first = watcher.look()
    if once:
        show_once(first)
        return 0
    try:
        return show_live(watcher, first, every_s or LOOK_S) if sys.stdout.isatty() else print_lines(watcher, first, every_s or LINE_S)
    except KeyboardInterrupt:
        return 0


def show_once(seen: "Seen") -> None:
    """One picture, or its plain lines."""
    from stagecoach.cli.watch_view import picture, plain_picture

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(picture(seen))
    else:
        click.echo(plain_picture(seen))
        if seen.said is not None:
            click.echo(visible(seen.said.sentence), err=True)


def show_live(watcher: "Watcher", seen: "Seen", every_s: float) -> int:
    """Redraws in place until it is over."""
    from rich.console import Console
    from rich.live import Live

    from stagecoach.cli.watch_view import picture
    from stagecoach.errors import StagecoachError

    with Live(picture(seen), console=Console(), auto_refresh=False) as live:
        trouble = ""
        while not seen.is_over:
            time.sleep(every_s)
            try:
                seen, trouble = watcher.look(), ""
            except StagecoachError as error:  # the bucket may answer again; what is shown is said to be old
                trouble = f"not up to date: {error}"
            live.update(picture(seen, trouble=trouble), refresh=True)
    return seen.exit_code


def print_lines(watcher: "Watcher", seen: "Seen", every_s: float) -> int:
    """A line whenever something changed, at most so often; an attempt's begin and end at once."""
    from stagecoach.cli.watch_view import plain_line
    from stagecoach.errors import StagecoachError

    printed, printed_at, is_told = "", float("-inf"), False
    before: tuple[object, ...] = ()
    while True:
        line, event = plain_line(seen), (seen.place, len(seen.attempts), seen.is_live, seen.is_over)
        now = time.monotonic()
        if line != printed and (now - printed_at >= every_s or event != before):
            click.echo(line)
            printed, printed_at, before = line, now, event
        if seen.is_over:
            if seen.said is not None:
                click.echo(visible(seen.said.sentence), err=True)
            return seen.exit_code
        time.sleep(min(LOOK_S, every_s))
        try:
            seen, is_told = watcher.look(), False
        except StagecoachError as error:
            if not is_told:
                click.echo(visible(f"not up to date: {error}"), err=True)
            is_told = True
