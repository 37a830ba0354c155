"""What any world and mesh saved, any other loads: in real gloo processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

RANKS = 4
DEADLINE_S = 280.0


def test_any_world_size_and_mesh_loads_what_any_other_saved(tmp_path: Path) -> None:
    """1, 2, 3, 4 ranks, HSDP 2x2 and columns instead of rows: 36 pairs, bit for bit. Then one rank finds damage, and both fall back."""
    script = Path(__file__).parent / "resharding_ranks.py"
    logs = [tmp_path / f"{rank}.log" for rank in range(RANKS)]
    command = [sys.executable, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            arguments = [str(rank), str(tmp_path), f"file://{tmp_path}/jobs"]
            ranks.append(subprocess.Popen([*command, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment))
    try:
        wait_until_one_fails_or_all_are_done(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    failed = [rank for rank, process in enumerate(ranks) if process.returncode > 0]
    assert not failed, f"rank {failed[0]}:\n{logs[failed[0]].read_text()[-4000:]}"
    assert all("all equal" in log.read_text() for log in logs)


def wait_until_one_fails_or_all_are_done(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """The others would wait for the one that failed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
        time.sleep(0.1)
