"""The platform engineer's page: commands that want helm and kubectl, and no node. The others: tests/cluster/install."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gpu", "air-gapped"])
def test_the_commands_work_as_printed(name: str, tmp_path: Path, fake_nodes: int) -> None:
    found = re.search(rf"^<!-- commands: {name} -->\n```sh\n(.*?)^```", (ROOT / "helm/README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    for room in ("helm", "manifests"):
        (tmp_path / room).symlink_to(ROOT / room)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", found[1]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "air-gapped":
        images = [line.partition(": ")[2].strip('"') for line in done.stdout.splitlines() if line.startswith("image: ")]
        assert images
        assert all(image.startswith("registry.example.com/mirror/stagecoach/") for image in images), images
    else:
        assert "kind: ClusterQueue" in (tmp_path / "queues.yaml").read_text()
        assert "kind: Deployment" in (tmp_path / "stagecoach.yaml").read_text()
