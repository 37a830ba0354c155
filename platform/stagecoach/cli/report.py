"""`stagecoach report`: a run as one HTML file."""

import os
import sys
from pathlib import Path

import click

from stagecoach.cli.read import root_option
from stagecoach.errors import ConfigError


@click.command("report")
@click.argument("run")
@root_option
@click.option("--out", metavar="FILE", help="Where the page goes; default: RUN.report.html in this folder. `-` is stdout.")
@click.option(
    "--open", "opens", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
    help="Show it in a browser; auto: where there is a terminal and a desktop.",
)  # fmt: skip
def report_command(run: str, root: str | None, out: str | None, opens: str) -> None:
    """Writes one HTML file about RUN (or one job): stages, curves, attempts, scores, answers. It needs no network to be looked at.

    Reads the bucket alone, of a run that is still going as well.
    """
    from datetime import UTC, datetime

    from stagecoach.explain.resolve import find
    from stagecoach.report.page import build_page
    from stagecoach.report.story import read_story
    from stagecoach.site import root_uri

    target = find(run, root=root_uri(root))
    path = None if out == "-" else Path(out or f"{target.name}.report.html").absolute()
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ConfigError(f"--out {out}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}; name a file")
    page = build_page(read_story(target, made_at=datetime.now(UTC).isoformat(timespec="seconds")))
    if path is None:
        sys.stdout.buffer.write(page)
        return
    try:
        _write(path, page)
    except OSError as error:  # which names the file beside it, that nobody asked for
        raise ConfigError(f"--out {out or path.name}: cannot write in the folder {path.parent}: {error.strerror}") from error
    click.echo(str(path))
    if opens == "yes" or (opens == "auto" and _has_desktop()):
        import webbrowser

        webbrowser.open(path.as_uri())


def _write(path: Path, page: bytes) -> None:
    """All of it or nothing: whoever has it open sees no half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(page)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _has_desktop() -> bool:
    return sys.stdout.isatty() and (sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")))
