"""A slow rank among ranks that all wait for it."""

import json
import subprocess
import sys
from pathlib import Path

SLOW = 1


def test_the_rank_that_is_slow_is_named_although_a_step_takes_all_ranks_alike(tmp_path: Path) -> None:
    script = Path(__file__).with_name("straggling_ranks.py")
    arguments = [str(tmp_path / "store"), str(SLOW), str(tmp_path / "report.json")]
    ranks = [subprocess.Popen([sys.executable, str(script), str(rank), *arguments]) for rank in range(2)]
    try:
        assert [process.wait(250) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    report = json.loads((tmp_path / "report.json").read_text())
    assert max(report["whole"]) / min(report["whole"]) < 1.1  # what a step takes tells nothing
    assert report["named"] == [[50, SLOW]]
