"""SIGKILL while checkpoints are removed (F32)."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_gc_never_leaves_a_half_deleted_checkpoint_on_offer(tmp_path: Path) -> None:
    """Every thirteenth line here; all of them without the last argument."""
    command = [sys.executable, "-m", "stagecoach.testing.gc_crashes", str(tmp_path), "13"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["wrong"] == []
    assert found["kills"] >= 25
