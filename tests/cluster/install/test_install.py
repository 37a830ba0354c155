"""The page on real nodes: install, test, a pipeline by its Prefect deployment, report, preemption, upgrade, uninstall, nothing left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(2700)
def test_the_page_is_true(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/cluster_install.py", "--json", str(tmp_path / "told.json")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=2600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    wanted = {"install", "helm test", "network policies", "two stages, preempted in mid-training", "upgrade in mid-training", "uninstall"}
    assert set(told["seconds"]) >= wanted
    assert not [fact for fact in told["doctor"] if fact.startswith("bad")]
    assert told["explain"]
