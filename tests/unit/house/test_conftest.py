"""What tests/conftest.py does with skips and with commands that are left out, wherever a test runs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_pytest(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """On tests of the chart, in a process of its own; `path`: the only folder in which it finds programs."""
    known = {name: value for name, value in os.environ.items() if name != "STAGECOACH_TEST_CLUSTER"}
    programs = {"PATH": str(path)} if path else {}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**known, **programs, **environment}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_commands_that_a_test_leaves_out_are_listed_also_where_it_runs_in_a_process_of_its_own() -> None:
    done = run_pytest("tests/unit/chart/test_page.py", "-k", "carried_out", "-n", "1")
    assert done.returncode == 0, done.stdout
    assert "left out: docker build -f platform/Dockerfile" in done.stdout


def test_a_skip_of_a_chart_test_is_a_failure_where_a_cluster_was_started(tmp_path: Path) -> None:
    chosen = ("tests/unit/chart/test_chart.py", "-k", "alerts_fire or every_alert_has_a_test")
    elsewhere = run_pytest(*chosen, path=tmp_path)
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert "needs promtool on the PATH" in elsewhere.stdout
    required = run_pytest(*chosen, path=tmp_path, STAGECOACH_TEST_CLUSTER="required")
    assert required.returncode == 1, required.stdout
    assert "skipped although a cluster was started" in required.stdout
    assert "1 passed" in required.stdout  # the others are told all the same
