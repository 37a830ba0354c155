"""The command line never shows a traceback for what a person can mend, and one broken plugin does not take the others away."""

import json
import os
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


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"], ids=["closed", "full"])
@pytest.mark.parametrize(("arguments", "status"), [("recipes --json", 0), ("plan no_such_recipe", 2)])
def test_a_stderr_that_takes_nothing_changes_no_exit_status(arguments: str, status: int, where: str) -> None:
    command = f"{sys.executable} -m stagecoach.cli {arguments} {where}"
    assert subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False, timeout=60).returncode == status


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "a").mkdir(parents=True)
    (tmp_path / "jobs" / "a" / "job.json").write_text("{}")
    command = f"{sys.executable} -m stagecoach.cli runs --root file://{tmp_path} > /dev/full"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert (shown.returncode, shown.stderr) == (1, "stagecoach: No space left on device\n")


def test_names_and_signs_that_the_encoding_does_not_have_are_escaped(tmp_path: Path) -> None:
    for name in ("caf\u00e9 \U0001f600", "two\x1b[2Jlines", os.fsdecode(b"not-utf8-\xff")):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        (tmp_path / "jobs" / name / "job.json").write_text("{}")

    def ask(*arguments: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "stagecoach.cli", *arguments]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        return subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment)

    runs = ("runs", "--root", f"file://{tmp_path}")
    for encoding in ("ascii", "latin-1", "utf-8"):
        assert ask("recipes", encoding=encoding).returncode == 0  # stages are joined by an arrow
        table = ask(*runs, encoding=encoding)
        assert (table.returncode, table.stderr) == (0, b"")
        assert b"\x1b" not in table.stdout
        listed = json.loads(ask(*runs, "--json", encoding=encoding).stdout)
        assert sorted(entry["name"] for entry in listed) == sorted(path.name for path in (tmp_path / "jobs").iterdir())


def test_a_level_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STAGECOACH_LOG_LEVEL", "loud")
    assert run("recipes") == 2
    assert "STAGECOACH_LOG_LEVEL='LOUD' is no level; use one of TRACE" in capsys.readouterr().err


@pytest.mark.parametrize("streams", ["", "2>&-", ">&- 2>&-"], ids=["all", "no stderr", "none"])
def test_ctrl_c_while_the_command_line_is_still_imported_ends_without_a_traceback(streams: str, tmp_path: Path) -> None:
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # whoever runs the tests in the background has it ignored
    (tmp_path / "click.py").write_text(f"import os, signal, time; {heard}; os.kill(os.getpid(), signal.SIGINT); time.sleep(30)")
    command = f"PYTHONPATH={tmp_path} exec {sys.executable} -m stagecoach recipes {streams}"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "" if streams else "stopped\n")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "stagecoach", *arguments], capture_output=True, text=True, check=False, timeout=60)

    assert ask("--version").stdout.startswith("stagecoach, version ")
    refused = ask("plan", "mm1_tinny")
    assert (refused.returncode, "did you mean `mm1_tiny`" in refused.stderr) == (2, True)
