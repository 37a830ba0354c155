"""`stagecoach ...`. Commands are found by the entry-point group `stagecoach.commands` and loaded on use (interfaces.md section 1).

A command's module imports only click and the standard library at its top; what it needs beyond that is imported when it runs, so that
`stagecoach --help` stays below half a second and works where torch or a cluster client is not installed.
"""

import difflib
import io
import os
import signal
import sys
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import ClassVar

import click

from stagecoach import __version__
from stagecoach.cli.tables import visible
from stagecoach.errors import StagecoachError

GROUP = "stagecoach.commands"
EXTRA_OF_MODULE = {
    "torch": "train", "torchdata": "train", "tensorboard": "train", "numpy": "train", "safetensors": "train", "PIL": "train",
    "pyarrow": "train", "prometheus_client": "train", "cv2": "train", "simplejpeg": "train", "av": "train", "pypdfium2": "train",
    "tokenizers": "train", "xxhash": "train",
    "torchx": "control", "kubernetes": "control", "prefect": "control",
    "ray": "ray",
}  # fmt: skip
EXTRA_OF_MODULE["stagecoach_workloads"] = "train"
EXTRA_OF_MODULE["stagecoach_flows"] = "control"


class EntryPointGroup(click.Group):
    """Its own commands, and those that rooms register under the entry-point group `entry_group`, loaded on use."""

    entry_group: ClassVar[str]

    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.entry_group)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._found()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        point = self._found().get(cmd_name)
        if own is not None or point is None:
            return own
        try:
            command: click.Command = point.load()
        except Exception as error:  # somebody else's module: whatever it raises must not take the other commands away
            return broken_command(point, error)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}"
            raise click.UsageError(f"no command `{args[0]}`; {hint}")
        return super().resolve_command(ctx, args)


class Commands(EntryPointGroup):
    """The commands of all installed rooms."""

    entry_group = GROUP


def broken_command(point: EntryPoint, error: Exception) -> click.Command:
    """Stands in for a command that cannot be loaded: --help lists it with the cause, calling it says the same and ends with 1."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRA_OF_MODULE:
        told = missing_extra(error)
    else:
        told = StagecoachError(f"command `{point.name}` ({point.value}) cannot be loaded: {type(error).__name__}: {error}")

    def refuse() -> None:
        raise told

    anything = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, expose_value=False)
    lenient = {"ignore_unknown_options": True}
    return click.Command(point.name, callback=refuse, params=[anything], help=str(told), context_settings=lenient, add_help_option=False)


def missing_extra(error: ModuleNotFoundError) -> StagecoachError:
    """Which extra brings the module that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None:
        return StagecoachError(f"the Python module `{error.name}` is not installed")
    return StagecoachError(f"this needs `{module}`, which is not installed: pip install 'stagecoach[{extra}]'")


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="stagecoach")
def cli() -> None:
    """Trains multimodal language models (MM1, MM1.5, BLIP-3) stage by stage, on one machine or a Kubernetes cluster.

    Results go to stdout, narration to stderr. Exit: 0 done, 1 the run or check failed, 2 asked wrongly (nothing was started or written);
    commands that wait for a job also end with its code: 40-49 fatal, 75 retried, 143 stopped by the platform.
    """
    from stagecoach.log import configure  # here, so that --help does without

    configure()


def main(arguments: list[str] | None = None) -> None:
    """The console script. Never a traceback for what a person can mend."""
    prepare_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup SIGHUP is ignored, and stays so
            signal.signal(number, end_by_signal)
    status = run(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # told already; the interpreter would flush again when it ends, and tell it in its own way
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def prepare_streams() -> None:
    """Stands in for a stream that was closed when we were started; what an encoding does not have is escaped, not raised."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_by_signal(number: int, _frame: FrameType | None) -> None:
    """Ends as by Ctrl-C: a command that started something gets the chance to stop it."""
    raise SystemExit(128 + number)


def run(arguments: list[str] | None) -> int:
    """Runs one command and returns its exit status."""
    try:
        returned = cli.main(args=arguments, prog_name="stagecoach", standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except BrokenPipeError:  # `stagecoach plan ... | head`: whoever read us has enough
        return 0
    except (Exception, KeyboardInterrupt) as error:
        status, says = told(error)
        try:
            click.echo(says, err=True)
        except OSError:
            pass  # nobody can be told; the status says it
        return status


def told(error: BaseException) -> tuple[int, str]:
    """Exit status and sentence of an error that a person can mend. Raises any other again."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        context = error.ctx
        return 2, f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n\nError: {visible(error.format_message())}"
    if isinstance(error, click.ClickException):
        return 2, f"Error: {visible(error.format_message())}"
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, StagecoachError):
        from stagecoach.redaction import redact

        return int(error.exit_code), f"stagecoach: {visible(redact(str(error)))}"
    if isinstance(error, ModuleNotFoundError):
        return 1, f"stagecoach: {missing_extra(error)}"
    if isinstance(error, OSError):  # a full disk behind stdout, a folder that may not be read
        where = f" ({error.filename})" if error.filename else ""
        return 1, f"stagecoach: {visible(f'{error.strerror or error}{where}')}"
    raise error
