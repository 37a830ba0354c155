"""SIGKILL to a pipeline's process on the real local launcher, at calls spread over all of it: run again, it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.ledger import Runs
from stagecoach.launch.local import LocalLauncher

CALLER = Path(__file__).with_name("one_caller.py")
KINDS = ("launcher.submit", "create_if_absent runs/toy/run.json", "create_if_absent plan.json", "create_if_absent submissions/1.json",
         "create_if_absent submissions/1.submitted.json", "create_if_absent submissions/1.ended.json", "create_if_absent stage.json",
         "launcher.describe")  # fmt: skip


def call(root: Path, corpus: str, die_at: int, how: str = "plain", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CALLER), f"file://{root}/runs", corpus, f"{root}/state", str(die_at), how]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(root: Path) -> list[int]:
    """How often each job's node was really started."""
    return [len(path.read_text().split()) for path in sorted((root / "state" / "jobs").glob("*/node-*.starts"))]


def close(root: Path) -> None:
    launcher = LocalLauncher(root / "state")
    for handle in launcher.list():
        launcher.delete(handle)


@pytest.mark.timeout(900)
def test_killed_anywhere_and_run_again_there_is_one_job_per_stage_and_the_same_weights(tmp_path: Path, corpus: str) -> None:
    undisturbed = answer(call(tmp_path / "0", corpus, 0))
    close(tmp_path / "0")
    calls = undisturbed["calls"]
    first = [calls.index(kind) + 1 for kind in KINDS]
    last = len(calls) - calls[::-1].index("launcher.submit")  # of the second stage
    points = sorted({*first, last})
    assert len(points) >= 8
    for number in points:
        root = tmp_path / str(number)
        assert call(root, corpus, number).returncode == -9, calls[number - 1]
        again = answer(call(root, corpus, 0))
        assert again["weights"] == undisturbed["weights"], calls[number - 1]
        assert starts(root) == [1, 1], calls[number - 1]
        runs = Runs.open(f"file://{root}/runs")
        run = runs.run("toy")
        assert run is not None
        assert [len(runs.stage(run, stage).submissions()) for stage in run.stages] == [1, 1]
        close(root)
