"""Prefect dies, training does not: the server for a minute, and a flow's process for good.

    python benchmarks/prefect_faults.py [--only outage|silent|lost] [--steps 400] [--json FILE]

Real parts throughout: `prefect server start`, `prefect worker start`, what `stagecoach deploy` registers, the trainer on the local
launcher.

outage: the server is killed while a stage trains, and started again 60 s later. The run ends as one that nobody disturbed: one
submission, one attempt, the same weights.
silent: a worker and the flow's process on it are killed with SIGKILL. The job trains on; the server makes the flow run CRASHED and
starts the `resume` flow, which lets a worker attach to the job. Told: the seconds from the kill to each of these.
lost: the flow's process and the server are killed with SIGKILL, and the server's database is deleted. The same command again, with a
Prefect of its own, attaches to the job that trained on meanwhile.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.testing.prefect_server import PrefectServer

OUTAGE_S = 60.0
LONG_S = 900.0
DATASETS = "captions,captions_synthetic,interleaved,text"
STAGECOACH = [sys.executable, "-m", "stagecoach"]


def until(is_so: Callable[[], bool], what: str) -> None:
    """Looks twice a second. Raises TimeoutError after LONG_S."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > LONG_S:
            raise TimeoutError(f"waited {LONG_S:g} s for {what}")
        time.sleep(0.5)


def settings(steps: int) -> list[str]:
    return [f"pretrain.steps={steps}", "pretrain.schedule.warmup_steps=5", "pretrain.evaluation.suites=[]",
            "pretrain.evaluation.validate_every_steps=null"]  # fmt: skip


def command(folder: Path, run_id: str, steps: int) -> list[str]:
    """The first stage of the miniature, through the flow."""
    values = [part for setting in settings(steps) for part in ("--set", setting)]
    asked = ["--run-id", run_id, "--root", (folder / "runs").as_uri(), "--data", (folder / "corpus").as_uri(), "--stages", "pretrain"]
    return [*STAGECOACH, "run", "mm1_tiny", *asked, *values]


def job_of(folder: Path, run_id: str) -> JobFolder | None:
    runs = Runs.open((folder / "runs").as_uri())
    run = runs.run(run_id)
    return runs.stage(run, "pretrain") if run is not None else None


def step_of(folder: Path, run_id: str) -> int:
    """The last step that the newest attempt told of; 0 before there is one."""
    job = job_of(folder, run_id)
    numbers = job.attempt_numbers() if job is not None else []
    progress = job.progress(numbers[-1]) if job is not None and numbers else None
    return progress.step if progress is not None else 0


def came_to(folder: Path, run_id: str) -> dict[str, Any]:
    """What counts of a finished run. Fails when it is not finished."""
    job = job_of(folder, run_id)
    manifest = job.stage() if job is not None else None
    assert job is not None, run_id
    assert manifest is not None, run_id
    return {
        "submissions": len(job.submissions()),
        "attempts": manifest.attempts,
        "steps": manifest.steps,
        "weights": manifest.weights_digest,
    }


def outage(server: PrefectServer, folder: Path, steps: int) -> dict[str, Any]:
    """The server is away for OUTAGE_S while the stage trains."""
    caller = subprocess.Popen(command(folder, "outage", steps), env=server.environment, start_new_session=True)
    until(lambda: step_of(folder, "outage") >= 10, "the first steps")
    server.kill()
    before = step_of(folder, "outage")
    time.sleep(OUTAGE_S)
    during = step_of(folder, "outage") - before
    server.start()
    code = caller.wait(LONG_S)
    states = {run["name"]: run["state"]["type"] for run in server.all("flow_runs")}
    found = {"exit_code": code, "steps_made_in_the_outage": during, "flow_runs_afterwards": states, "disturbed": came_to(folder, "outage")}
    subprocess.run(command(folder, "calm", steps), env=server.environment, check=True)
    calm = came_to(folder, "calm")
    return {**found, "calm": calm, "same_weights": calm["weights"] == found["disturbed"]["weights"]}


def lost(server: PrefectServer, folder: Path, steps: int) -> dict[str, Any]:
    """Nothing is left of Prefect; the bucket knows."""
    caller = subprocess.Popen(command(folder, "lost", steps), env=server.environment, start_new_session=True)
    until(lambda: step_of(folder, "lost") >= 10, "the first steps")
    caller.kill()
    caller.wait()
    server.kill()
    step = step_of(folder, "lost")
    shutil.rmtree(server.home)
    server.home.mkdir()
    environment = {name: value for name, value in server.environment.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    again = subprocess.run(command(folder, "lost", steps), env=environment, check=False)
    return {"step_at_the_kill": step, "exit_code": again.returncode, **came_to(folder, "lost")}


def worker(server: PrefectServer) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "stagecoach"], env=server.environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_worker_and_flow(process: "subprocess.Popen[bytes]") -> int:
    """SIGKILL to the worker and to the flows below it; supervisors are not theirs. Returns how many flows there were."""
    flows = [child for child in psutil.Process(process.pid).children(recursive=True) if is_prefect(child)]
    process.kill()
    for flow in flows:
        with suppress(psutil.Error):
            flow.kill()
    process.wait()
    return len(flows)


def is_prefect(process: psutil.Process) -> bool:
    try:
        return any(part == "prefect" or part.startswith("prefect.") for part in process.cmdline())
    except psutil.Error:
        return False


def silent(server: PrefectServer, folder: Path, steps: int) -> dict[str, Any]:
    """Nobody tells the server that the flow's process is gone: its heartbeat is missing."""
    environment = {**server.environment, "STAGECOACH_SITE_ROOT": (folder / "runs").as_uri()}
    deployed = json.loads(subprocess.run([*STAGECOACH, "deploy", "--json"], env=environment, check=True, capture_output=True).stdout)
    first = worker(server)
    parameters = {"recipe": "mm1_tiny", "root": (folder / "runs").as_uri(), "run_id": "silent", "data": (folder / "corpus").as_uri(),
                  "stages": ["pretrain"], "settings": settings(steps)}  # fmt: skip
    asked = server.ask(f"deployments/{deployed['deployments']['mm1_pipeline']}/create_flow_run", {"parameters": {"parameters": parameters}})
    until(lambda: step_of(folder, "silent") >= 10, "the first steps")
    time.sleep(35.0)  # a flow sends its heartbeat every 30 s; the automation counts from the first
    flows, killed = kill_worker_and_flow(first), time.monotonic()
    told: dict[str, Any] = {"flow_processes_killed": flows, "step_at_the_kill": step_of(folder, "silent")}
    second = worker(server)
    try:
        until(lambda: state_of(server, asked["id"]) == "CRASHED", "the silent run to become CRASHED")
        told |= {"crashed_after_s": round(time.monotonic() - killed, 1), "step_then": step_of(folder, "silent")}
        until(lambda: resumes(server, "AUTOMATION") > 0, "the resume flow by the automation")
        told["resume_flow_asked_after_s"] = round(time.monotonic() - killed, 1)
        until(lambda: is_finished(folder, "silent"), "the run's end")
        told["finished_after_s"] = round(time.monotonic() - killed, 1)
    finally:
        kill_worker_and_flow(second)
    return {**told, **came_to(folder, "silent")}


def state_of(server: PrefectServer, flow_run: str) -> str:
    found: str = server.ask(f"flow_runs/{flow_run}")["state"]["type"]
    return found


def resumes(server: PrefectServer, by: str) -> int:
    """Runs of the `resume` flow that something of that kind created."""
    flows = {flow["id"] for flow in server.all("flows") if flow["name"] == "resume"}
    return sum(run["flow_id"] in flows and (run.get("created_by") or {}).get("type") == by for run in server.all("flow_runs"))


def is_finished(folder: Path, run_id: str) -> bool:
    job = job_of(folder, run_id)
    return job is not None and job.stage() is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("outage", "silent", "lost"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": f"{os.cpu_count()} cores", "steps": asked.steps}
    for kind, measure in (("outage", outage), ("silent", silent), ("lost", lost)):
        if asked.only not in (None, kind):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "prefect").mkdir()
            subprocess.run([*STAGECOACH, "data", "make", str(folder / "corpus"), "--profile", "tiny", "--only", DATASETS], check=True)
            server = PrefectServer(folder / "prefect")
            server.start()
            try:
                report[kind] = measure(server, folder, asked.steps)
            finally:
                server.kill()
            print(json.dumps({kind: report[kind]}, indent=1), flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=1) + "\n")
    good = [report.get("outage", {}).get("same_weights", True)]
    good += [report[kind]["submissions"] == report[kind]["attempts"] == 1 for kind in ("silent", "lost") if kind in report]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
