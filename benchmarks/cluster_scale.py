"""Many stages on nodes that KWOK pretends: how soon a submitted stage has its JobSet, and whether any of hundreds is lost or doubled.

    python benchmarks/cluster_scale.py [--json FILE] [--markdown FILE]      all of it: 1,000 nodes, 500 stages of 8 pods, some ten minutes
    python benchmarks/cluster_scale.py --pods 2 --quota 250                 what two cores do in ten minutes: a pod costs them half a second

Needs a cluster with fake nodes and S3 (tests/cluster/run starts one where it can: STAGECOACH_TEST_UP='--fake-nodes 1000').

pace: stages are submitted at --rate a second for --seconds, by `submit_job` through the jobset launcher, their folders in the bucket, and
watched to their end. Counted from when a submit was due, so that one that waits for another counts as late. The process is one that has
submitted before: TorchX is imported (a second or more of a core), connections are there.
burst: --stages stages of three priorities at once, each pod wanting a node of its own, so that the quota (--quota nodes, by default all)
holds a part of them and the important push the others out, whose pods take two seconds to end. One process submits and watches them all.

Real are: the API server, Kueue, JobSet, scheduler, S3, our client, intent log and watches. Pods run on paper, for so long as an annotation
says. Ends with 1 when a limit is missed or a stage is lost or doubled.
"""

import argparse
import json
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster_scale_counts import LIMIT_S, Requests, Stage, at, is_met, memory_mb, noted, told
from cluster_scale_table import write_table
from stagecoach.contract.launch import LaunchSpec, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.names import job_name
from stagecoach.contract.plan import Resources
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import connect
from stagecoach.launch.submit import submit_job, wait_job
from stagecoach.testing.cluster_world import HIGH, LOW, ClusterWorld

Obj = dict[str, Any]

MIDDLE = "stagecoach-test-middle"
PRIORITIES = {LOW: 100, MIDDLE: 500, HIGH: 1000}
PER_POD = Resources(hardware="cpu", cpus_per_rank=128, memory_gb_per_rank=0.25, shm_gb=0.064)  # more than half of a fake node
PACE_POLL_S, BURST_POLL_S = 5.0, 10.0  # between two looks at a stage
SUBMITTERS = 16  # of a burst, at a time
STOP_S = 2  # a victim's pods take so long to end


class FakeRuns(JobsetLauncher):
    """Pods run for so long on paper, and end well. Notes when a JobSet was there."""

    run_s = 30

    def build(self, spec: LaunchSpec) -> Obj:
        built = super().build(spec)
        pods = built["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]
        pods["annotations"] |= {"stagecoach.dev/fake-run": f"{self.run_s}s", "stagecoach.dev/fake-stop": f"{STOP_S}s"}
        return built

    def submit(self, spec: LaunchSpec) -> RunHandle:
        handle = super().submit(spec)
        CREATED[spec.job_uri] = time.monotonic()
        return handle


CREATED: dict[str, float] = {}


# --- submitting and watching


def run_stage(stage: Stage, launcher: JobsetLauncher, poll_s: float, gate: Any) -> None:
    """As a stage runner does: submitted through the intent log, watched to its end."""
    job = JobFolder.open(stage.spec.job_uri)
    try:
        with gate:
            handle = submit_job(launcher, job, stage.spec)
        stage.submitted_s = time.monotonic() - stage.due
        stage.created_s = CREATED[stage.spec.job_uri] - stage.due
        wait_job(launcher, job, handle, 1, poll_s=poll_s, on_state=stage.states.append)
    except Exception as error:  # one that fails is a figure, and the others go on
        stage.error = f"{type(error).__name__}: {error}"[:500]


@contextmanager
def watchers(count: int) -> Iterator[Callable[[Stage, JobsetLauncher, float, Any], "Future[None]"]]:
    """A thread a stage: nearly all of them sleep."""
    threading.stack_size(512 * 1024)
    pool = ThreadPoolExecutor(count)
    try:
        yield lambda *asked: pool.submit(run_stage, *asked)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def specs(world: ClusterWorld, name: str, count: int, pods: int) -> Iterator[LaunchSpec]:
    """So many runs of one stage."""
    for number in range(count):
        run_id = f"{name}-{number:04d}"
        made = world.spec(run_id, name=job_name(run_id, "pretrain", "0123abcd", 1), nodes=pods, resources=PER_POD)
        yield made


def pace(world: ClusterWorld, asked: argparse.Namespace) -> dict[str, Any]:
    """Submits at a rate, whatever becomes of the earlier ones."""
    count = round(asked.rate * asked.seconds)
    stages = [Stage(spec) for spec in specs(world, "pace", count, asked.pods)]
    launcher, requests = counted_launcher(world, run_s=asked.run)
    warm_up(launcher, stages[0].spec)
    began = time.monotonic()
    with watchers(count) as start, noted(world.kube) as noticed:
        futures = []
        for number, stage in enumerate(stages):
            stage.due = began + number / asked.rate
            time.sleep(max(0.0, stage.due - time.monotonic()))
            futures.append(start(stage, launcher, PACE_POLL_S, threading.Semaphore(1)))
        wait_all(futures, asked.minutes)
    return told(world, stages, requests, noticed) | {"rate": asked.rate, "seconds": asked.seconds}


def warm_up(launcher: FakeRuns, spec: LaunchSpec) -> None:
    """Imports what building a JobSet needs, and talks to both servers once."""
    launcher.check(launcher.build(spec))
    JobFolder.open(spec.job_uri).submissions()


def burst(world: ClusterWorld, asked: argparse.Namespace) -> dict[str, Any]:
    """All at once, by priority: the unimportant first, so that the important have somebody to push out."""
    chance = random.Random(asked.seed)
    stages = [
        Stage(replace(spec, priority=list(PRIORITIES)[number % len(PRIORITIES)]))
        for number, spec in enumerate(specs(world, "burst", asked.stages, asked.pods))
    ]
    chance.shuffle(stages)
    launcher, requests = counted_launcher(world, run_s=asked.run)
    warm_up(launcher, stages[0].spec)
    gate = threading.Semaphore(SUBMITTERS)
    before = memory_mb()
    began = time.monotonic()
    with watchers(len(stages)) as start, noted(world.kube) as noticed:
        for stage in stages:
            stage.due = began
        futures = [start(stage, launcher, BURST_POLL_S, gate) for stage in stages]
        wait_all(futures, asked.minutes)
    ended_s = time.monotonic() - began
    took = max((stage.submitted_s for stage in stages if stage.submitted_s is not None), default=0.0)
    figures = told(world, stages, requests, noticed)
    waits = {priority: [] for priority in PRIORITIES}
    for stage in stages:
        if (waited := figures["waits"].get(stage.spec.name)) is not None:
            waits[stage.spec.priority or LOW].append(waited)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures | {
        "submits_per_s": len(stages) / took if took else 0.0, "ended_s": ended_s, "memory_before_mb": before, "memory_peak_mb": peak,
        "threads_peak": noticed["threads"], "wait_p50_by_priority": {priority: at(found, 0.5) for priority, found in waits.items()},
    }  # fmt: skip


def counted_launcher(world: ClusterWorld, *, run_s: int) -> tuple[FakeRuns, Requests]:
    """One launcher for all stages, as in one process, and what it asks."""
    kube = connect()
    requests = Requests(kube)
    launcher = FakeRuns(kube, world.site())
    launcher.run_s = run_s
    return launcher, requests


def wait_all(futures: "list[Future[None]]", minutes: float) -> None:
    """Until all have ended, or time is over."""
    until = time.monotonic() + minutes * 60
    while not all(future.done() for future in futures) and time.monotonic() < until:
        time.sleep(1)
        print(f"\r{sum(future.done() for future in futures)} of {len(futures)} ended", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


# --- by hand


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["pace", "burst"])
    parser.add_argument("--rate", type=float, default=2.0, help="submits per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--stages", type=int, default=500, help="of the burst")
    parser.add_argument("--pods", type=int, default=8, help="of a stage")
    parser.add_argument("--quota", type=int, help="pods that may run at a time; default: as many as there are nodes")
    parser.add_argument("--run", type=int, default=30, help="seconds that a pod runs on paper")
    parser.add_argument("--minutes", type=float, default=15.0, help="what has not ended after so long is lost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def command(asked: argparse.Namespace) -> str:
    """What to type for such a page."""
    parts = [] if asked.only is None else ["--only", asked.only]
    parts += ["--rate", f"{asked.rate:g}", "--seconds", f"{asked.seconds:g}", "--stages", str(asked.stages), "--pods", str(asked.pods)]
    parts += [] if asked.quota is None else ["--quota", str(asked.quota)]
    return " ".join(["python benchmarks/cluster_scale.py", *parts, "--run", str(asked.run), "--seed", str(asked.seed)])


def main() -> int:
    """Both parts, each in a namespace of its own."""
    asked = parse()
    nodes = len(connect().list(paths.of(paths.CORE, "nodes"), labels="type=kwok", what="list nodes")["items"])
    if not nodes:
        print("needs nodes that KWOK pretends: cluster up --fake-nodes 1000", file=sys.stderr)
        return 2
    figures: dict[str, Any] = {"nodes": nodes, "quota": asked.quota or nodes, "load_before": os.getloadavg()[0], "run_s": asked.run}
    for part, measure in (("pace", pace), ("burst", burst)):
        if asked.only not in (None, part):
            continue
        world = ClusterWorld(cpus=figures["quota"] * 128)
        make_priority(world)
        figures[part] = measure(world, asked)
        figures[part]["met"] = is_met(figures[part], part)
        del figures[part]["waits"]
        figures |= {"load_after": os.getloadavg()[0], "limit_s": LIMIT_S}
        tell(asked, figures)  # after each part: the next one takes minutes, and may be interrupted
        world.close()
    return 0 if all(figures[part]["met"] for part in ("pace", "burst") if part in figures) else 1


def tell(asked: argparse.Namespace, figures: dict[str, Any]) -> None:
    """To whoever waits, and into the files that were asked for."""
    text = json.dumps(figures, indent=1)
    print(text, flush=True)
    if asked.json:
        asked.json.write_text(f"{text}\n")
    if asked.markdown:
        write_table(asked.markdown, figures, command(asked))


def make_priority(world: ClusterWorld) -> None:
    """The one between those that the world makes."""
    body = {"metadata": {"name": MIDDLE}, "value": PRIORITIES[MIDDLE]}
    path = paths.of(paths.KUEUE, "workloadpriorityclasses", None, MIDDLE)
    named = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass", **body}
    world.kube.apply(path, named, manager="tests", what="apply a priority")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that wait for what never ended are not waited for
