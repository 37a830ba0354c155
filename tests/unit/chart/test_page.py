"""The platform engineer's page: every block is carried out by a test or left out by name, and every command it names exists."""

import re
import shlex
from collections.abc import Callable, Iterator
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


def test_every_block_is_carried_out_by_a_test_or_left_out(record_property: Callable[[str, object], None]) -> None:
    marks = re.findall(r"^<!-- commands: (\S+) -->\n```sh\n", PAGE.read_text(), re.MULTILINE)
    assert set(marks) == ON_NODES | WITHOUT_NODES
    assert len(marks) == len(blocks("sh")), "a block without a mark is carried out by nobody"
    lines = [line for block in blocks("sh left-out") for line in block.splitlines()]
    assert lines
    for line in lines:
        record_property("left out", f"{line}  (needs GPUs or a registry)")  # tests/conftest.py lists them at the end


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


def test_the_secret_of_the_charts_quick_start_is_made_before_pods_want_it() -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", (PAGE.parent / "stagecoach/README.md").read_text(), re.DOTALL | re.MULTILINE)
    before, _, install = block.partition("helm install")
    (secret,) = re.findall(r"bucket\.secret=(\S+)", install)
    assert f"kubectl create secret generic {secret} -n stagecoach" in before
    assert "kubectl create namespace stagecoach" in before
    assert "--create-namespace" not in install


def test_images_are_built_under_the_names_that_the_chart_gives_them() -> None:
    lines = [line for block in blocks("sh left-out") for line in block.splitlines()]
    built = {name for line in lines if line.startswith("docker build") for name in re.findall(r" -t (\S+)", line)}
    assert sorted(built) == (PAGE.parent / "stagecoach/images.txt").read_text().split()


def test_torch_for_gpus_comes_from_an_index_beside_the_usual_one() -> None:
    """In the place of the usual one it would have no other package in the versions of constraints.txt."""
    for file in (PAGE, PAGE.parents[1] / "workloads/Dockerfile"):
        options = re.findall(r"--build-arg TORCH='torch (\S+) \S+'", file.read_text())
        assert options == ["--extra-index-url"], file


def test_requests_to_the_api_server_are_those_that_were_measured() -> None:
    told = re.search(r"about (\d+) requests in the life of a stage of two pods, (\d+) of them ours", PAGE.read_text())
    assert told is not None
    measured = (PAGE.parents[1] / "workloads/results/scale.md").read_text()
    rows = re.findall(r"^\| requests to the API server per stage .*? ([\d.]+) of our client, ([\d.]+) of everybody", measured, re.MULTILINE)
    assert rows
    for ours, all_of_them in rows:
        assert float(all_of_them) == pytest.approx(float(told[1]), rel=0.25)
        assert float(ours) == pytest.approx(float(told[2]), rel=0.25)


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
