"""The command line never shows a traceback for what a person can mend, and one broken plugin does not take the others away."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

from stagecoach import cli
from stagecoach.errors import ConfigError, StorageError


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, by name and import string; a test fills it. The seam is Python's own entry points."""
    table: dict[str, str] = {}
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint(name, value, group) for name, value in table.items()])
    return table


def fails(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("fails", callback=callback)


bad_setting = fails(ConfigError("pretrain.batch.size=0: must be greater than 0"))
bad_store = fails(StorageError("s3://bucket: https://me:hunter2hunter2@host refused"))
no_torch = fails(ModuleNotFoundError("No module named 'torch'", name="torch"))
interrupted = fails(KeyboardInterrupt())


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("bad_setting", 2, "pretrain.batch.size=0"),
        ("bad_store", 1, "s3://bucket"),
        ("no_torch", 1, "pip install 'stagecoach[train]'"),
        ("interrupted", 130, "stopped"),
    ],
)
def test_errors_end_with_their_code_and_a_sentence(
    name: str, status: int, says: str, commands: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands["it"] = f"{__name__}:{name}"
    sys.modules.setdefault(__name__, sys.modules[fails.__module__])
    assert run("it") == status
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("stagecoach.no_such_module:it", "ModuleNotFoundError"),  # B62
        ("stagecoach.errors:no_such_name", "AttributeError"),
        ("stagecoach_broken_plugin:it", "RuntimeError: plugin is broken"),
        ("torchdata_is_absent.x:it", "cannot be loaded"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_cause(
    value: str, says: str, commands: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stagecoach_broken_plugin.py").write_text("raise RuntimeError('plugin is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    commands["broken"] = value
    assert run("--help") == 0
    assert "broken" in capsys.readouterr().out
    assert run("broken", "--any", "thing") == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert value in shown
    assert "Traceback" not in shown


def test_an_unknown_command_gets_the_nearest_name(commands: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    commands["preflight"] = "stagecoach.cli:cli"
    assert run("prefligt") == 2
    assert "did you mean `preflight`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "says"),
    [("| true", ""), ("> /dev/full", "stagecoach: No space left on device\n"), (">&-", "")],
    ids=["closed pipe", "full disk", "no stdout"],
)
def test_a_stdout_that_takes_nothing_ends_without_a_traceback(where: str, says: str) -> None:
    command = f"{sys.executable} -m stagecoach.cli recipes --json {where}"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert shown.stderr == says
