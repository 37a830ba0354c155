"""What `cluster_scale.py` counts: stages, by the cluster's objects and the bucket; requests, by our client and by the API server itself."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psutil

from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.testing.cluster_world import ClusterWorld

Obj = dict[str, Any]

LIMIT_S = 2.0  # from when a submit was due until its JobSet is there, p99


@dataclass
class Stage:
    """One stage, and what became of it."""

    spec: LaunchSpec
    due: float = 0.0  # monotonic
    created_s: float | None = None  # from `due` to the JobSet's creation
    submitted_s: float | None = None  # until the intent log says so
    states: list[JobState] = field(default_factory=list)
    error: str = ""

    @property
    def is_done(self) -> bool:
        return bool(self.states) and self.states[-1].phase == Phase.SUCCEEDED


class Requests:
    """Counts what one client asks the API server."""

    def __init__(self, kube: Kube) -> None:
        self.by_kind: Counter[str] = Counter()
        self._lock, self._real = threading.Lock(), kube._request
        kube._request = self

    def __call__(self, method: str, url: str, **rest: Any) -> Any:
        path, _, query = url.partition("?")
        kind = "WATCH" if "watch=true" in query else method
        with self._lock:
            self.by_kind[f"{kind} {plural_of(path)}"] += 1
        return self._real(method, url, **rest)


def plural_of(path: str) -> str:
    """The kind of object that a path is of."""
    parts = path.split("/")
    return parts[parts.index("namespaces") + 2] if "namespaces" in parts and len(parts) > parts.index("namespaces") + 2 else parts[-2]


def told(world: ClusterWorld, stages: list[Stage], requests: Requests, noticed: Obj) -> dict[str, Any]:
    """Figures of either part, from the cluster, the bucket and the API server's own counters."""
    jobsets = [item for item in world.kube.list(world.jobset_path(""), what="list jobsets")["items"] if is_one_of(item, stages)]
    pods = world.kube.list(world.path("pods"), what="list pods")["items"]
    workloads = world.kube.list(paths.of(paths.KUEUE, "workloads", world.namespace), what="list workloads")["items"]
    names = {stage.spec.name for stage in stages}
    evicted = sum(evictions(item) for item in workloads if item["metadata"]["ownerReferences"][0]["name"] in names)
    lost = [stage.spec.name for stage in stages if not stage.is_done or not has_ended(stage)]
    doubled = doubles(stages, jobsets, pods)
    waits = seconds_to_run(jobsets, pods)
    count = len(stages)
    return {
        "stages": count, "pods": stages[0].spec.nodes, "done": sum(stage.is_done for stage in stages), "lost": lost, "doubled": doubled,
        "errors": sorted({stage.error for stage in stages if stage.error})[:5],
        "made_by_the_api_server": noticed["made"], "evictions": evicted,
        "restarts": sum((item.get("status") or {}).get("restarts") or 0 for item in jobsets),
        "created_s": quantiles(stage.created_s for stage in stages), "submitted_s": quantiles(stage.submitted_s for stage in stages),
        "running_s": quantiles(waits.values()), "waits": waits,
        "our_requests_per_stage": round(sum(requests.by_kind.values()) / count, 2), "our_requests": dict(requests.by_kind.most_common()),
        "all_requests_per_stage": round(noticed["all"] / count, 1),
    }  # fmt: skip


def is_one_of(jobset: Obj, stages: list[Stage]) -> bool:
    return any(jobset["metadata"]["annotations"].get("stagecoach.dev/job-uri") == stage.spec.job_uri for stage in stages)


def has_ended(stage: Stage) -> bool:
    """The intent log has the end of its first submission, and a good one."""
    state = JobFolder.open(stage.spec.job_uri).submission_state(1)
    return state is not None and state.state == "ended" and state.exit_code == 0


def doubles(stages: list[Stage], jobsets: list[Obj], pods: list[Obj]) -> list[str]:
    """Stages with more than one JobSet or submission, and JobSets whose nodes did not each end well once."""
    found = []
    by_uri = Counter(item["metadata"]["annotations"]["stagecoach.dev/job-uri"] for item in jobsets)
    nodes: dict[str, list[str]] = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        if pod["status"].get("phase") == "Succeeded":
            nodes.setdefault(labels["jobset.sigs.k8s.io/jobset-name"], []).append(labels["batch.kubernetes.io/job-completion-index"])
    for stage in stages:
        uri, name = stage.spec.job_uri, stage.spec.name
        submissions = len(JobFolder.open(uri).submissions())
        if by_uri[uri] != 1 or submissions != 1:
            found.append(f"{name}: {by_uri[uri]} JobSets, {submissions} submissions")
        elif stage.is_done and sorted(map(int, nodes.get(name, []))) != list(range(stage.spec.nodes)):
            found.append(f"{name}: the nodes that ended well are {sorted(nodes.get(name, []))}")
    return found


def evictions(workload: Obj) -> int:
    """How often Kueue took its place away."""
    stats = (workload.get("status") or {}).get("schedulingStats") or {}
    return sum(int(item.get("count") or 0) for item in stats.get("evictions") or ())


def seconds_to_run(jobsets: list[Obj], pods: list[Obj]) -> dict[str, float]:
    """From a JobSet's creation until the last of its pods ran for good, by the cluster's clock (whole seconds)."""
    started: dict[str, float] = {}
    for pod in pods:
        name, begun = pod["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"], pod["status"].get("startTime")
        if begun:
            started[name] = max(started.get(name, 0.0), stamp(begun))
    return {
        item["metadata"]["name"]: started[item["metadata"]["name"]] - stamp(item["metadata"]["creationTimestamp"])
        for item in jobsets
        if item["metadata"]["name"] in started
    }


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def at(values: Iterable[float | None], share: float) -> float | None:
    """The quantile; None of nothing."""
    there = sorted(value for value in values if value is not None)
    return round(there[min(len(there) - 1, int(share * len(there)))], 3) if there else None


def quantiles(values: Iterable[float | None]) -> dict[str, float | None]:
    there = list(values)
    return {"p50": at(there, 0.5), "p99": at(there, 0.99), "max": at(there, 1.0)}


def memory_mb() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


@contextmanager
def noted(kube: Kube) -> Iterator[Obj]:
    """What the API server counted within: requests of everybody, JobSets made. And this process's threads at most."""
    before = counters(kube)
    noticed: Obj = {"threads": 0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            noticed["threads"] = max(noticed["threads"], threading.active_count())

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    yield noticed
    over.set()
    looker.join()
    after = counters(kube)
    noticed |= {key: after[key] - before[key] for key in after}


def counters(kube: Kube) -> dict[str, int]:
    """From the API server's own `apiserver_request_total`."""
    found = {"all": 0, "made": 0}
    for line in kube.stream("/metrics", query={}, silence_s=60.0, what="read the API server's metrics"):
        if not line.startswith(b"apiserver_request_total{"):
            continue
        count = int(float(line.rpartition(b" ")[2]))
        found["all"] += count
        is_made = all(part in line for part in (b'resource="jobsets"', b'verb="POST"', b'code="201"', b'dry_run=""'))
        found["made"] += count if is_made else 0
    return found


def is_met(found: dict[str, Any], part: str) -> bool:
    """Nothing lost, nothing doubled, and the pace's limit."""
    whole = found["done"] == found["stages"] == found["made_by_the_api_server"] and not found["lost"] and not found["doubled"]
    return whole and not found["restarts"] and (part != "pace" or found["created_s"]["p99"] < LIMIT_S)
