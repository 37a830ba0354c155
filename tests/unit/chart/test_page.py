"""The platform engineer's page: every block is carried out by a test or left out by name, and every command it names exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from stagecoach.cli import cli

PAGE = Path(__file__).parents[3] / "helm/README.md"
ON_NODES = {"kind", "run", "report", "uninstall"}  # by tests/cluster/install, where both images are on nodes
WITHOUT_NODES = {"gpu", "air-gapped"}  # by tests/cluster/test_page.py


def blocks(fence: str) -> list[str]:
    """Of the page, by what stands behind its three ticks."""
    return re.findall(rf"^```{fence}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_every_block_is_carried_out_by_a_test_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    marks = re.findall(r"^<!-- commands: (\S+) -->\n```sh\n", PAGE.read_text(), re.MULTILINE)
    assert set(marks) == ON_NODES | WITHOUT_NODES
    assert len(marks) == len(blocks("sh")), "a block without a mark is carried out by nobody"
    lines = [line for block in blocks("sh left-out") for line in block.splitlines()]
    assert lines
    with capsys.disabled():
        print("\nleft out, they need GPUs or a registry:", *lines, sep="\n  ")


def secrets_in(thing: Any) -> Iterator[str]:
    """Names of secrets that rendered objects refer to."""
    if isinstance(thing, list):
        for inner in thing:
            yield from secrets_in(inner)
    elif isinstance(thing, dict):
        for key, inner in thing.items():
            if key == "secretName" or (key == "name" and set(thing) == {"name", "key"}):
                yield inner
            elif key == "imagePullSecrets":
                yield from (one["name"] for one in inner)
            else:
                yield from secrets_in(inner)


def test_every_secret_that_the_production_example_names_is_made_before_it_is_installed() -> None:
    rendered = list(yaml.safe_load_all((PAGE.parent / "rendered/production.yaml").read_text()))
    named = set(secrets_in(rendered))
    assert {"prefect-database", "hugging-face", "mirror", "stagecoach-tls"} <= named  # each by another kind of reference
    block = next(block for block in blocks("sh left-out") if "examples/production.yaml" in block)
    before, _, _ = block.partition("helm install")
    assert set(re.findall(r"kubectl create secret \S+ (\S+) -n", before)) == named


def shown_commands() -> list[str]:
    """Every `stagecoach ...` of the page, in its sentences and in its blocks."""
    inside = re.findall(r"`(stagecoach [a-z][^`]*)`", re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL))
    lines = [line.partition("  #")[0].strip() for block in [*blocks("sh"), *blocks("sh left-out")] for line in block.splitlines()]
    starts = [line for line in lines if line.startswith("stagecoach ")]
    in_pods = [line.partition(" -- ")[2] for line in lines if " -- stagecoach " in line]
    return sorted({*inside, *starts, *in_pods})


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_of_the_page_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, line
        command = found
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, line
