"""A stage as pods on two real nodes: preempted in mid-training, saved, queued, admitted again, resumed; bit for bit as if never touched."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.job import AttemptEnd
from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.cluster_world import PodWorld

STAGECOACH = str(Path(sys.executable).parent / "stagecoach")
STEPS = 40
WAIT_S = 150.0


def run_stage(pods: PodWorld, run_id: str, data: str, **more: Any) -> "subprocess.Popen[str]":
    """`stagecoach run-stage mm1_tiny --stage pretrain` on two pods."""
    command = [STAGECOACH, "run-stage", "mm1_tiny", "--stage", "pretrain", "--run-id", run_id, "--nodes", "2", "--ranks-per-node", "1"]
    sets = [f"pretrain.steps={STEPS}", "pretrain.checkpoint.every_steps=10", "pretrain.resources.memory_gb_per_rank=2"]
    settings = [part for setting in sets for part in ("--set", setting)]
    return subprocess.Popen(
        [*command, *settings, "--data", data, "--json"],
        env=pods.site_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    manifest: dict[str, Any] = json.loads(out)
    return manifest


def explain(pods: PodWorld, run_id: str) -> dict[str, Any]:
    done = subprocess.run(
        [STAGECOACH, "explain", run_id, "--json"], env=pods.site_environment(), capture_output=True, text=True, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def wait(what: str, holds: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < WAIT_S, what
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.fixture
def corpus(pods: PodWorld) -> str:
    """A made corpus in the bucket, for the stage's data."""
    uri = f"{pods.root.removesuffix('/root')}/corpus"
    subprocess.run([STAGECOACH, "data", "make", uri, "--profile", "tiny"], check=True, capture_output=True, timeout=240)
    return uri


@pytest.mark.timeout(600)
def test_preempted_in_mid_training_it_ends_with_the_weights_of_an_untouched_run(pods: PodWorld, corpus: str) -> None:
    untouched = finished(run_stage(pods, "untouched", corpus))
    running = run_stage(pods, "preempted", corpus)
    job = JobFolder.open(f"{pods.root}/runs/preempted/stages/00-pretrain")
    wait("the first attempt to train", lambda: (seen := job.progress(1)) is not None and 3 <= seen.step < STEPS - 10)
    preempted_at = time.monotonic()
    hog = pods.preempt(seconds=3)
    wait("the preemptor to run", lambda: pods.running(hog) == 2)
    print(f"preempt -> preemptor's pods run: {time.monotonic() - preempted_at:.1f} s")
    said = explain(pods, "preempted")
    print("explain:", json.dumps(said)[:800])
    manifest = finished(running)
    first, second = (job.attempt_end(number) for number in (1, 2))
    assert isinstance(first, AttemptEnd)
    assert isinstance(second, AttemptEnd)
    assert (first.kind, first.exit_code, first.steps_lost) == ("stopped", 143, 0)
    start = job.attempt_start(2)
    assert start is not None
    assert start.resumed_from_step == first.committed_step == first.step
    assert manifest["weights_digest"] == untouched["weights_digest"]
    assert {node.machine for node in job.nodes(1)} <= {"node-0", "node-1"}
    (handle,) = pods.launcher().list(run_id="preempted")
    assert pods.jobset(handle).get("status", {}).get("restarts", 0) == 0
    pods.launcher().delete(handle)
    assert explain(pods, "preempted")["cause"] in ("trained", "finished")
