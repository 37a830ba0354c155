"""A real Prefect server: deployments are applied twice and stay single; it is killed during a stage and the pipeline does not mind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.launch.local import LocalLauncher
from stagecoach.testing.local_world import wait_for

CALLER = Path(__file__).with_name("one_caller.py")
START_S = 240.0
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "0", "PREFECT_API_REQUEST_TIMEOUT": "5"}  # of a server that is known to be gone


@dataclass
class Server:
    """`prefect server start`, a process of its own."""

    home: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **QUIET, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.url, "STAGECOACH_STATE_DIR": str(self.home)}

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        wait_for(self.is_up, "Prefect's server", START_S)

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL to it and what it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def count(self, what: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}/{what}/filter", data=b"{}", headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "prefect").mkdir()
    one = Server(tmp_path / "prefect", port)
    one.start()
    yield one
    one.kill()


@pytest.mark.timeout(900)
def test_deploying_twice_doubles_nothing_and_dropping_the_webhook_drops_the_notices(server: Server) -> None:
    def deploy(*options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "stagecoach", "deploy", "--json", *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=server.environment, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    first = deploy("--webhook", "http://127.0.0.1:9/hook")
    second = deploy("--webhook", "http://127.0.0.1:9/hook")
    assert first == second
    deployments = {one["entrypoint"]: one for one in server.count("deployments")}
    assert len(deployments) == len(first["deployments"]) == 11
    assert len(deployments["stagecoach_flows.resume.resume"]["schedules"]) == 1
    assert {one["name"] for one in server.count("automations")} == set(first["automations"])
    assert len(first["automations"]) == 5
    assert len(deploy()["automations"]) == 2
    assert len(server.count("automations")) == 2


@pytest.mark.timeout(900)
def test_prefects_server_is_killed_during_a_stage_and_the_pipeline_goes_on(server: Server, tmp_path: Path, corpus: str) -> None:
    state, root = tmp_path / "state", tmp_path / "runs"
    caller = subprocess.Popen(
        [sys.executable, str(CALLER), f"file://{root}", corpus, str(state), "0", "prefect"],
        env={**server.environment, **IMPATIENT, "STAND_IN_SECONDS": "10"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: bool(list(root.glob("runs/toy/stages/*/submissions/1.submitted.json"))), "the first stage", START_S)
        assert server.count("flow_runs"), "the flow is not known to the server"
        server.kill()
        began = time.monotonic()
        said, told = caller.communicate(timeout=400)
    finally:
        caller.kill()
    assert caller.returncode == 0, told[-3000:]
    assert len(json.loads(said.splitlines()[-1])["weights"]) == 2
    launcher = LocalLauncher(state)
    starts = [len(path.read_text().split()) for path in (state / "jobs").glob("*/node-*.starts")]
    assert starts == [1, 1]
    assert time.monotonic() - began < 300
    for handle in launcher.list():
        launcher.delete(handle)
