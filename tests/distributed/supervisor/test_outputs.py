"""What a job leaves in the bucket while it runs, and what its port answers."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

from .conftest import StartJob


def test_logs_and_events_reach_the_bucket_without_secrets(make_job: StartJob) -> None:
    job = make_job({"steps": 8, "secret": "hunter2-hunter2"})
    job.start()
    assert job.wait() == 0
    assert job.job.sources("logs", 1) == ["rank-0", "rank-1", "supervisor"]
    lines = list(job.job.lines("logs", 1, "rank-1"))
    assert any(line.startswith("step 8 state") for line in lines)
    assert "connecting with password=***" in lines
    assert "hunter2" not in job.tail(1000)
    events = list(job.job.events(1, "rank-0"))
    assert [event["step"] for event in events if event["name"] == "loss"] == list(range(1, 9))
    own = [json.loads(line) for line in job.job.lines("logs", 1, "supervisor")]
    assert any("attempt 1" in line["message"] for line in own)


def test_progress_metrics_and_health_are_served_while_it_runs(make_job: StartJob) -> None:
    job = make_job({"steps": 100_000})  # more than can be done before it is stopped below
    job.start()
    job.wait_step(60)
    port = job.job.newest_attempt().leader_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as reply:
        assert reply.read() == b"ok\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        metrics = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#"))
    assert float(metrics["stagecoach_step"]) >= 10  # looked at every quarter of a second
    assert float(metrics["stagecoach_attempt"]) == 1
    assert float(metrics["stagecoach_heartbeat_age_seconds"]) < 15
    assert float(metrics['stagecoach_seconds_total{bucket="compute"}']) > 0
    until = time.monotonic() + 30
    while (progress := job.job.progress(1)) is None or progress.step < 10:  # published every 2 s
        assert time.monotonic() < until
        time.sleep(0.1)
    assert progress.steps == 100_000
    assert progress.phase == "train"
    job.supervisors[0].terminate()
    assert job.wait() == 143


def test_a_full_log_volume_does_not_stop_training(make_job: StartJob) -> None:
    """Every write of the supervisor's own output fails with ENOSPC."""
    job = make_job({"steps": 20, "faults": [{"kind": "flood", "rank": 0, "step": 5, "value": 4}]})
    code = (
        "import os, sys; full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2); "
        "os.execv(sys.executable, [sys.executable, '-m', 'stagecoach.supervisor'])"
    )
    job.start()
    assert job.wait() == 0  # with room, for its environment
    full = make_job({"steps": 20, "faults": [{"kind": "flood", "rank": 0, "step": 5, "value": 4}]})
    environment = full.environment()
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment, timeout=60).returncode == 0
    assert full.result() == job.result()
    assert sum(1 for line in full.job.lines("logs", 1, "rank-0") if line.startswith("xxx")) == 4096


def test_a_port_in_use_is_named(make_job: StartJob) -> None:
    job = make_job({"steps": 3})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        job.start(environment={"STAGECOACH_PORT": str(port)})
        assert job.wait() == 75
    assert f"port {port} is in use by another program" in job.tail()
    assert "set STAGECOACH_PORT" in job.tail()
    assert job.job.attempt_numbers() == []
