"""Every command of flows/RESEARCHERS.md works as printed, in its order, in an empty folder. Those that need a GPU cluster are listed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "flows/RESEARCHERS.md"
TOPICS = ("Change a recipe", "Add a data source", "Bring code", "Resume, pause", "Fork", "Compare two runs")


def blocks(kind: str) -> dict[str, str]:
    """Heading -> its commands."""
    found: dict[str, str] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        for commands in re.findall(rf"^```{kind}\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            heading = section.partition("\n")[0]
            found[heading] = found.get(heading, "") + commands
    return found


def run(commands: str, folder: Path) -> str:
    """In one shell that ends at the first failure. What it said, of either kind."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STAGECOACH_STATE_DIR": str(folder / "state"), "COLUMNS": "160"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return f"{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(900)
def test_the_commands_of_the_page_work_as_printed(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    shown, left_out = blocks("sh"), blocks("sh cluster")
    assert tuple(shown) == TOPICS
    said = {topic: run(commands, tmp_path) for topic, commands in shown.items()}
    assert "pretrain.optimizer.peak_lr" in said["Change a recipe"]
    assert "notes" in said["Add a data source"]
    assert "this is my own trainer" in said["Bring code"]
    assert "finished before" in said["Resume, pause"]
    assert "paused by" in said["Fork"]
    assert "the same weights" in said["Compare two runs"]
    assert "other weights" in said["Compare two runs"]
    assert (tmp_path / "calmer.html").stat().st_size > 10_000
    for line in (line for text in left_out.values() for line in text.splitlines()):
        record_property("left out", f"{line}  (needs a GPU cluster)")  # tests/conftest.py lists them at the end
