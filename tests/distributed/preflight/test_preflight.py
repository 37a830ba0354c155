"""`stagecoach preflight` on real processes: launcher, supervisors, ranks. What is slow or broken is named, by rank and machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from stagecoach.testing.fault_server import FaultServer

WAIT_S = 90
QUICK = ("--set", "windows=3", "--set", "window_s=0.1", "--set", "bucket_mb=1")
LONG = ("--set", "windows=30", "--set", "window_s=0.1", "--set", "bucket_mb=1")  # not over before a signal reaches a rank


class Preflight:
    """One run of the command in a process of its own, with its own state folder and root."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.root = folder / "root"
        command = [sys.executable, "-m", "stagecoach.cli", "preflight", "--root", f"file://{self.root}", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STAGECOACH_STATE_DIR": str(folder / "state"), **(environment or {})},
        )

    def wait(self) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)."""
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err

    def rank(self, number: int) -> psutil.Process:
        """The process of one rank, once it is there."""
        return until(lambda: next((process for process in self._ranks() if _variable(process, "RANK") == str(number)), None))

    def phases(self) -> dict[str, str]:
        """What rank 0 last said of each rank."""
        for path in self.root.glob("jobs/*/phases.json"):
            found: dict[str, str] = json.loads(path.read_text())["phases"]
            return found
        return {}

    def leftovers(self) -> list[psutil.Process]:
        """Processes of the job that are still there."""
        return [process for process in psutil.process_iter() if str(self.root) in _variable(process, "STAGECOACH_JOB_URI")]

    def _ranks(self) -> Iterator[psutil.Process]:
        for process in self.leftovers():
            try:
                if "stagecoach_workloads.rank" in " ".join(process.cmdline()) and _variable(process, "RANK"):
                    yield process
            except psutil.Error:
                continue


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "")
    except (psutil.Error, OSError):
        return ""


def until(ask: Callable[[], Any]) -> Any:
    """What `ask` says once it says something."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise TimeoutError("waited in vain")


@contextmanager
def throttled(process: psutil.Process, share: float) -> Iterator[None]:
    """Lets the process run only `share` of the time, in slices of 40 ms: what a hot or a shared core does."""
    over = threading.Event()

    def throttle() -> None:
        try:
            while not over.is_set():
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.04 * (1 - share))
                process.send_signal(signal.SIGCONT)
                time.sleep(0.04 * share)
        except psutil.NoSuchProcess:
            pass

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def problems_of(report: dict[str, Any]) -> set[tuple[str, str, int | None]]:
    return {(problem["severity"], problem["check"], problem["rank"]) for problem in report["problems"]}


def test_two_healthy_nodes_are_fit(tmp_path: Path) -> None:
    status, out, err = Preflight(tmp_path, "--nodes", "2", "--json", *QUICK).wait()
    report = json.loads(out)
    assert (status, report["fit"], report["problems"]) == (0, True, []), err
    assert report["format"] == "stagecoach.preflight/1"
    assert [(rank["rank"], rank["node"], rank["local_rank"]) for rank in report["ranks"]] == [(0, 0, 0), (1, 1, 0)]
    for rank in report["ranks"]:
        assert rank["failures"] == []
        assert rank["matmul"]["gflops"] > 1
        assert rank["all_reduce"]["gb_s"] > 0
        assert abs(rank["clock"]["skew_s"]) < 1
        assert rank["bucket"]["write_mb_s"] > 0
    assert sum(rank["bucket"]["created"] for rank in report["ranks"]) == 1  # one winner of the conditional create
    assert "torch: rank" in err  # progress, by phase and rank; later phases may pass between two looks


def test_a_throttled_rank_is_named_and_only_that_one(tmp_path: Path) -> None:
    preflight = Preflight(tmp_path, "--ranks-per-node", "4", "--set", "windows=5", "--set", "rounds=2", "--set", "bucket_mb=1")
    slow = preflight.rank(2)
    until(lambda: preflight.phases().get("0", "torch") != "torch")
    with throttled(slow, 0.3):
        status, out, err = preflight.wait()
    report = json.loads(next(preflight.root.glob("jobs/*/report.json")).read_text())
    assert status == 1, err
    assert problems_of(report) == {("slow", "matmul", 2)}, report["verdict"]
    assert f"rank 2 on {socket.gethostname()} is slow (matmul)" in out.splitlines()[-2]
    row = next(line for line in out.splitlines() if line.split()[:1] == ["2"])
    assert row.endswith("slow")
    assert "% !" in row  # the bad cell is marked where there is no colour


def test_a_rank_that_stands_still_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    preflight = Preflight(tmp_path, "--ranks-per-node", "2", "--json", *LONG, "--set", "patience_s=4")
    still = preflight.rank(1)
    until(lambda: preflight.phases().get("0", "torch") not in ("torch", "meeting"))
    still.send_signal(signal.SIGSTOP)
    status, out, err = preflight.wait()
    report = json.loads(out)
    assert status == 1, err
    assert problems_of(report) == {("broken", "present", 1)}, report["verdict"]
    assert f"rank 1 on {socket.gethostname()} is broken" in report["verdict"]
    assert [rank["rank"] for rank in report["ranks"]] == [0]
    assert preflight.leftovers() == []


def test_a_rank_that_dies_is_named_though_nobody_can_report(tmp_path: Path) -> None:
    preflight = Preflight(tmp_path, "--ranks-per-node", "2", "--json", *LONG)
    victim = preflight.rank(0)
    until(preflight.phases)
    victim.send_signal(signal.SIGKILL)
    status, out, err = preflight.wait()
    report = json.loads(out)
    assert (status, report["ranks"]) == (1, []), err
    assert problems_of(report) == {("broken", "present", 0)}, report["verdict"]
    assert preflight.leftovers() == []


@pytest.fixture
def forbidden_store() -> Iterator[dict[str, str]]:
    """Environment variables of an object store whose policy denies everything."""
    with FaultServer("http://127.0.0.1:9") as server:
        server.faults.forbid = True
        yield {
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }


def test_clock_disk_and_bucket_are_named(tmp_path: Path, forbidden_store: dict[str, str]) -> None:
    # Rank 1's clock is 30 s ahead: a sitecustomize on its path, since nobody may set a machine's clock in a test.
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '1':\n    true = time.time\n    time.time = lambda: true() + 30\n"
    )
    limits = ("--set", "min_free_disk_gb=1000000", "--set", "bucket_uri=s3://nobodys-bucket/x")
    preflight = Preflight(
        tmp_path, "--ranks-per-node", "3", "--json", *QUICK, *limits, environment={"PYTHONPATH": str(ahead), **forbidden_store}
    )
    status, out, err = preflight.wait()
    report = json.loads(out)
    assert status == 1, err
    assert problems_of(report) == {
        ("broken", "clock", 1), *(("broken", check, rank) for check in ("disk", "bucket") for rank in range(3)),
    }, report["verdict"]  # fmt: skip
    said = {problem["check"]: problem["says"] for problem in report["problems"]}
    assert "30.0 s ahead of the median of all ranks (limit 2 s)" in said["clock"]
    assert "1e+06 GB needed" in said["disk"]
    assert "nobodys-bucket" in said["bucket"]
    assert "403" in said["bucket"] or "denied" in said["bucket"].lower()


def test_a_root_without_permission_is_named_before_anything_starts(tmp_path: Path, forbidden_store: dict[str, str]) -> None:
    command = [sys.executable, "-m", "stagecoach.cli", "preflight", "--root", "s3://nobodys-bucket/runs", "--json"]
    environment = {**os.environ, "STAGECOACH_STATE_DIR": str(tmp_path), **forbidden_store}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT_S, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(problem["check"], problem["rank"]) for problem in report["problems"]] == [("bucket", None)]
    assert "nobodys-bucket" in report["verdict"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_stop_takes_its_job_along(tmp_path: Path, number: signal.Signals, status: int) -> None:
    preflight = Preflight(tmp_path, "--ranks-per-node", "2", *LONG)
    preflight.rank(1)
    preflight.process.send_signal(number)
    assert preflight.wait()[0] == status
    assert preflight.leftovers() == []
