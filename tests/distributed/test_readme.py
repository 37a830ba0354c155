"""Every command that a README shows works as printed. `make` targets and the environment's activation are the runner's own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_HERE = ("make ", "source ", "git clone")  # what runs these tests
NEED_A_CLUSTER = ("helm", "manifests")  # rooms whose commands are for a cluster: tests/cluster and tests/cluster/install carry them out


def readmes() -> list[Path]:
    return [path for path in sorted(ROOT.glob("**/README.md")) if not {".venv", *NEED_A_CLUSTER} & set(path.relative_to(ROOT).parts)]


def shown_commands() -> list[str]:
    """The lines of all ```sh blocks of the READMEs, comments cut off."""
    blocks = [block for readme in readmes() for block in re.findall(r"```sh\n(.*?)```", readme.read_text(), re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_HERE)]


def test_the_readmes_show_commands() -> None:
    assert len(shown_commands()) >= 5


@pytest.mark.parametrize("line", shown_commands())
def test_a_shown_command_works_as_printed(line: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.getbasetemp() / "readme-state"  # one for all: later commands read what earlier ones made
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STAGECOACH_STATE_DIR": str(state)}
    here = state.with_name("readme-folder")  # what the commands write stays out of the checkout
    here.mkdir(exist_ok=True)
    done = subprocess.run(shlex.split(line), cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
