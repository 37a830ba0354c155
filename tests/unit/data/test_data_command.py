"""`stagecoach data ...` as a person types it: what is asked wrongly ends with 2, names what was typed, and leaves no file."""

import os
from pathlib import Path

import click
import pytest

from stagecoach.cli import run
from stagecoach.storage import as_uri
from stagecoach_workloads.cli.data import parse_steps


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("make", ""), "the URI is empty"),
        (("make", "  "), "the URI is empty"),
        (("make", "pipe:touch made"), "'pipe:' would run a command"),
        (("make", "a\0b"), "holds a NUL"),
        (("verify", "pipe:ls"), "'pipe:' would run a command"),
        (("verify", "filter::s3://bucket/x"), "chained URIs"),
        (("stats", "gopher:hole"), "scheme 'gopher' is not one of file, s3"),
        (("inspect", "http://169.254.169.254/latest"), "169.254.169.254 is a loopback, link-local"),
        (("convert", "", "target", "--from", "llava"), "the URI is empty"),
        (("convert", "source", "s3://me:hunter2hunter2@bucket/x", "--from", "llava"), "carries a user or password"),
        (("index", "pipe:ls", "--tokenizer", "pipe:ls"), "'pipe:' would run a command"),
        (("plan", "mm1_tiny", "--stage", "pretrain", "--data", ""), "the URI is empty"),
        (("plan", "mm1_tiny", "--stage", "pretrain", "--steps", "0:²"), "--steps 0:²: two numbers A:B with A < B"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_made(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", *arguments]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert "hunter2" not in shown.err
    assert (shown.out, os.listdir(tmp_path)) == ("", [])


def test_a_path_is_a_file_and_a_colon_in_its_name_needs_a_folder_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_uri("corpus/") == f"file://{tmp_path}/corpus"
    assert as_uri("./pipe:ls") == f"file://{tmp_path}/pipe:ls"
    assert as_uri("s3://bucket/corpus/") == "s3://bucket/corpus"


@pytest.mark.parametrize("command", ["verify", "stats", "inspect", "index"])
def test_a_dataset_that_is_not_there_is_named_once(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", command, f"file://{tmp_path}/nope"]) == 2
    shown = capsys.readouterr()
    assert shown.err.strip().endswith(f"file://{tmp_path}/nope/dataset.json: not there; nothing stands under this URI")
    assert shown.err.count("nope") == 1
    assert shown.out == ""


@pytest.mark.parametrize("source", ["nope", "nope.json"])
def test_a_source_that_is_not_there_was_asked_for_wrongly_be_it_a_file_or_a_folder(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "convert", f"file://{tmp_path}/{source}", f"file://{tmp_path}/out", "--from", "llava"]) == 2
    assert f"{source}: not there" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_dataset_whose_manifest_is_lost_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/shard-00000.tar").write_bytes(bytes(1024))
    with pytest.raises(SystemExit, match="1"):
        run(["data", "verify", f"file://{tmp_path}"])
    assert f"file://{tmp_path}/dataset.json" in capsys.readouterr().out


def test_a_corpus_that_is_not_there_cannot_be_planned_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "plan", "mm1_tiny", "--stage", "pretrain", "--data", f"file://{tmp_path}"]) == 2
    assert f"file://{tmp_path}/corpus.json: not there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", ":", "1", "1:", ":2", "²:3", "0:1१", "2:2", "3:2", "-1:2", "1.0:2"])
def test_steps_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="two numbers A:B with A < B"):
        parse_steps(text)
