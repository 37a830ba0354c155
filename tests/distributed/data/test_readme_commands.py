"""The data commands of workloads/README.md, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from stagecoach_workloads.cli.data import data_group

README = Path(__file__).parents[3] / "workloads/README.md"


def test_the_commands_of_the_readme_work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```sh\n(stagecoach data .*?)```", README.read_text(), re.DOTALL)
    assert block
    lines = block[1].splitlines()
    assert len(lines) >= 7
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[:2] == ["stagecoach", "data"]
        run = CliRunner().invoke(data_group, words[2:])
        assert run.exit_code == 0, f"{line}: {run.output}"
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "again/dataset.json").exists()
