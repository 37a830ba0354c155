"""A real Prefect server: deployments are applied twice and stay single; it is killed during a stage and the pipeline does not mind."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.launch.local import LocalLauncher
from stagecoach.testing.local_world import wait_for
from stagecoach.testing.prefect_server import START_S, PrefectServer

CALLER = Path(__file__).with_name("one_caller.py")
IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "0", "PREFECT_API_REQUEST_TIMEOUT": "5"}  # of a server that is known to be gone


def started(home: Path) -> Iterator[PrefectServer]:
    home.mkdir()
    one = PrefectServer(home)
    one.start()
    yield one
    one.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """For tests that leave it alive."""
    yield from started(tmp_path_factory.mktemp("server") / "prefect")


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[PrefectServer]:
    """For a test that kills it."""
    yield from started(tmp_path / "prefect")


@dataclass
class Receiver:
    """An HTTP server that somebody else runs: keeps what it is told."""

    told: list[dict[str, Any]]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.told}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield Receiver(told, web.server_address[1])
        web.shutdown()


HAPPENS = """
from prefect.events import emit_event
stage = {"prefect.resource.id": "stagecoach.stage.toy.%s", "prefect.resource.name": "%s"}
emit_event("%s", resource=stage)
"""


def happen(server: PrefectServer, event: str, stage: str) -> None:
    """As the publisher of a flow tells it."""
    told = HAPPENS % (stage, stage, event)
    done = subprocess.run([sys.executable, "-c", told], check=False, capture_output=True, text=True, env=server.environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.timeout(900)
def test_notices_of_failed_pending_and_stalled_runs_reach_a_webhook(server: PrefectServer, receiver: Receiver, tmp_path: Path) -> None:
    deploy = [sys.executable, "-m", "stagecoach", "deploy", "--json", "--pending", "10", "--stalled", "10"]
    environment = {**server.environment, "STAGECOACH_NOTICE_WEBHOOK": receiver.url}
    done = subprocess.run(deploy, check=False, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    happen(server, "stagecoach.stage.waits", "pretrain")
    happen(server, "stagecoach.stage.progress", "sft")
    pipeline = json.loads(done.stdout)["deployments"]["mm1_pipeline"]
    run = server.ask(f"deployments/{pipeline}/create_flow_run", {"parameters": {"parameters": {"recipe": "mm1_tiny"}}})
    server.ask(f"flow_runs/{run['id']}/set_state", {"state": {"type": "FAILED", "message": "bad data"}, "force": True})
    wait_for(lambda: receiver.kinds() == {"failed", "pending", "no_progress"}, "three kinds of notices", START_S)
    about = {one["kind"]: one["about"] for one in receiver.told}
    assert about == {
        "failed": f"prefect.flow-run.{run['id']}", "pending": "stagecoach.stage.toy.pretrain", "no_progress": "stagecoach.stage.toy.sft",
    }  # fmt: skip
    assert all(one["text"].startswith("Stagecoach: ") for one in receiver.told)
    receiver.told.clear()
    assert run_toy(server, tmp_path, f"file://{tmp_path}/nothing").returncode != 0
    wait_for(lambda: receiver.kinds() == {"failed"}, "a notice of the run that failed in its own process", START_S)


@pytest.mark.timeout(900)
def test_deploying_twice_doubles_nothing_and_dropping_the_webhook_drops_the_notices(server: PrefectServer) -> None:
    def deploy(*options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "stagecoach", "deploy", "--json", *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=server.environment, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    first = deploy("--webhook", "http://127.0.0.1:9/hook")
    second = deploy("--webhook", "http://127.0.0.1:9/hook")
    assert first == second
    deployments = {one["entrypoint"]: one for one in server.all("deployments")}
    assert len(deployments) == len(first["deployments"]) == 11
    assert len(deployments["stagecoach_flows.resume.resume"]["schedules"]) == 1
    assert {one["name"] for one in server.all("automations")} == set(first["automations"])
    assert len(first["automations"]) == 5
    assert len(deploy()["automations"]) == 2
    assert len(server.all("automations")) == 2


def run_toy(server: PrefectServer, folder: Path, corpus: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CALLER), f"file://{folder}/runs", corpus, str(folder / "state"), "0", "prefect"]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=server.environment, timeout=400)


@pytest.mark.timeout(900)
def test_a_run_and_what_it_came_to_are_shown_by_the_server(server: PrefectServer, tmp_path: Path, corpus: str) -> None:
    others = {run["id"] for run in server.all("flow_runs")}
    done = run_toy(server, tmp_path, corpus)
    assert done.returncode == 0, done.stderr[-3000:]
    (flow,) = [flow for flow in server.all("flows") if flow["name"] == "mm1_pipeline"]
    runs = {
        run["id"]: run["state"]["type"]
        for run in server.all("flow_runs")
        if run["name"] == "mm1_tiny" and run["flow_id"] == flow["id"] and run["id"] not in others
    }
    assert list(runs.values()) == ["COMPLETED"]
    tasks = {task["name"]: task["state"]["type"] for task in server.all("task_runs") if task["flow_run_id"] in runs}
    assert tasks == {"pretrain": "COMPLETED", "sft": "COMPLETED"}
    shown = {artifact["key"]: artifact for artifact in server.all("artifacts/latest") if str(artifact["key"]).startswith("toy-")}
    assert shown.keys() >= {"toy-summary", "toy-stages"} | {
        f"toy-{stage}-{what}" for stage in ("pretrain", "sft") for what in ("progress", "report", "tensorboard-files", "stage-folder")
    }  # fmt: skip
    rows = [(row["stage"], row["attempt"], row["state"]) for row in json.loads(shown["toy-stages"]["data"])]
    assert rows == [("pretrain", "1", "done"), ("sft", "1", "done")]
    assert "| sft | done | 4 |" in shown["toy-summary"]["data"]
    assert (shown["toy-sft-progress"]["type"], float(shown["toy-sft-progress"]["data"])) == ("progress", 100.0)
    assert "step 4 of 4" in shown["toy-sft-progress"]["description"]
    launcher = LocalLauncher(tmp_path / "state")
    for handle in launcher.list():
        launcher.delete(handle)


@pytest.mark.timeout(900)
def test_prefects_server_is_killed_during_a_stage_and_the_pipeline_goes_on(doomed: PrefectServer, tmp_path: Path, corpus: str) -> None:
    state, root = tmp_path / "state", tmp_path / "runs"
    caller = subprocess.Popen(
        [sys.executable, str(CALLER), f"file://{root}", corpus, str(state), "0", "prefect"],
        env={**doomed.environment, **IMPATIENT, "STAND_IN_SECONDS": "10"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: bool(list(root.glob("runs/toy/stages/*/submissions/1.submitted.json"))), "the first stage", START_S)
        assert doomed.all("flow_runs"), "the flow is not known to the server"
        doomed.kill()
        said, told = caller.communicate(timeout=400)
    finally:
        caller.kill()
    assert caller.returncode == 0, told[-3000:]
    assert len(json.loads(said.splitlines()[-1])["weights"]) == 2
    launcher = LocalLauncher(state)
    starts = [len(path.read_text().split()) for path in (state / "jobs").glob("*/node-*.starts")]
    assert starts == [1, 1]
    for handle in launcher.list():
        launcher.delete(handle)
