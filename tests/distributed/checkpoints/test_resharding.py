"""What any world and mesh saved, any other loads: in real gloo processes."""

import os
import subprocess
import sys
from pathlib import Path

RANKS = 4


def test_any_world_size_and_mesh_loads_what_any_other_saved(tmp_path: Path) -> None:
    """1, 2, 3, 4 ranks, HSDP 2x2 and columns instead of rows: 36 pairs, bit for bit. Then one rank finds damage, and both fall back."""
    script = Path(__file__).parent / "resharding_ranks.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), f"file://{tmp_path}/jobs"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(RANKS)
    ]
    try:
        said = [rank.communicate(timeout=280)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(words[-3000:] for words in said)
    assert all("all equal" in words for words in said)
