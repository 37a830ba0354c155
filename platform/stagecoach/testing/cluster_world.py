"""A namespace of a real cluster with a queue of its own, and pods on nodes that KWOK pretends: real API server, Kueue and JobSet, whose
pods run for ever unless they are told how to end. For the launcher contract and for tests of queueing.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.contract.plan import Resources
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.jobset.phases import job_state
from stagecoach.launch.jobset.reader import JobsetApi
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.launch.kube.errors import NotFound
from stagecoach.site import Pods, Site
from stagecoach.testing.builders import attempt_start, launch_spec
from stagecoach.testing.local_world import wait_for

Obj = dict[str, Any]

WAIT_S = 90.0
FAKE_TAINT = "kwok.x-k8s.io/node:fake:NoSchedule"
QUEUE, LOW, HIGH = "research", "stagecoach-test-low", "stagecoach-test-high"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TINY = Resources(hardware="cpu", cpus_per_rank=0.5, memory_gb_per_rank=0.25, shm_gb=0.064)


class ClusterWorld:
    """One namespace, one ClusterQueue of `cpus`, two priorities. Everything in it goes with `close`."""

    def __init__(self, *, cpus: int = 64, retries: int = 0, topology: bool = False) -> None:
        self.kube: Kube = connect()
        self.namespace = f"test-{secrets.token_hex(4)}"
        self.retries = retries
        self.root = f"s3://{make_bucket(self.namespace)}/root"
        self._create("Namespace", {"metadata": {"name": self.namespace, "labels": RESTRICTED}})
        self.make_queue(cpus, topology=topology)
        self._eyes = JobsetLauncher(self.kube, self.site())

    def launcher(self) -> JobsetLauncher:
        """As good as one in another process: it has its own connections."""
        return JobsetLauncher(connect(), self.site())

    def site(self) -> Site:
        pods = Pods(retries=self.retries, tolerations=[FAKE_TAINT], node_selector={"type": "kwok"})
        return Site(namespace=self.namespace, pods=pods)

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec:
        """Two nodes of half a core, queued."""
        uri = f"{self.root}/runs/{run_id}/stages/00-pretrain"
        spec = launch_spec(job_uri=uri, nodes=2, ranks_per_node=1, grace_s=2, image="localhost/nothing:1", queue=QUEUE, resources=TINY)
        return replace(spec, **changes)  # type: ignore[arg-type]

    # --- what happens to jobs

    def finish(self, handle: RunHandle, code: int) -> None:
        """Every pod ends with `code`, and the job with them. Its supervisor had said that it is up."""
        self.say_up(handle)
        self.end_pods(handle, code)
        wait_for(lambda: self.state(handle).phase.is_terminal, f"{handle.name} to end", WAIT_S)

    def end_pods(self, handle: RunHandle, code: int) -> None:
        """The pods that run now end with `code`, or are taken along by the first that failed."""
        self.wait_running(handle)
        notes = {"stagecoach.dev/fake-run": "0s", "stagecoach.dev/fake-exit": str(code)}
        for pod in self.pods(handle):
            with suppress(NotFound):
                self.kube.merge(self.path("pods", pod["metadata"]["name"]), {"metadata": {"annotations": notes}}, what="end a pod")

    def lose(self, handle: RunHandle) -> None:
        """SIGKILL to every pod's first process, as its kubelet would tell it."""
        self.end_pods(handle, 137)
        wait_for(lambda: self.state(handle).phase.is_terminal, f"{handle.name} to end", WAIT_S)

    def say_up(self, handle: RunHandle) -> None:
        """A line that a supervisor would have shipped."""
        folder = JobFolder.open(handle.job_uri)
        folder.claim_attempt(attempt_start(nodes=2, ranks_per_node=1, leader_host="fake", submission=1))
        folder.write_segment("logs", 1, SUPERVISOR, 0, b"the supervisor is up\n")

    # --- looking

    def state(self, handle: RunHandle) -> JobState:
        """As one process sees it that looks again and again: by watches."""
        return self._eyes.describe(handle)

    def wait_phase(self, handle: RunHandle, *phases: Phase) -> JobState:
        """The state once it is one of `phases`."""
        seen: list[JobState] = []

        def look() -> bool:
            seen.append(self.state(handle))
            return seen[-1].phase in phases

        try:
            wait_for(look, f"{handle.name} to be {' or '.join(phases)}", WAIT_S)
        except TimeoutError as late:
            raise TimeoutError(f"{late}; it is {seen[-1]}") from None
        return seen[-1]

    def jobset(self, handle: RunHandle) -> Obj:
        """The object as it is now."""
        return self.kube.get(self.jobset_path(handle.name), what="read a jobset")

    def wait_restarts(self, handle: RunHandle, restarts: int) -> None:
        """JobSet has made its pods anew so often."""
        wait_for(lambda: self.jobset(handle).get("status", {}).get("restarts", 0) == restarts, f"restart {restarts}", WAIT_S)

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        wait_for(is_so, what, WAIT_S)

    def wait_running(self, handle: RunHandle) -> None:
        """All pods run, of the newest restart."""
        self.wait_running_name(handle.name)

    def wait_running_name(self, name: str) -> None:
        """As `wait_running`, of a JobSet that is no job of ours."""
        jobset = self.kube.get(self.jobset_path(name), what="read a jobset")
        nodes: int = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]

        def all_run() -> bool:
            pods = self.pods_of(name)
            alive = [pod for pod in pods if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")]
            return len(alive) == len(pods) == nodes

        try:
            wait_for(all_run, f"{name}'s pods to run", WAIT_S)
        except TimeoutError as late:
            seen = JobsetApi(self.kube, self.namespace).see(name)
            raise TimeoutError(f"{late}; it is {job_state(seen) if seen else 'gone'}") from None

    def starts(self, handle: RunHandle) -> list[int]:
        """How often each node was started: the pods there ever were, by index, as long as the job was not restarted."""
        all_pods = 1 if self.state(handle).phase.is_terminal else 2  # the first that fails takes those along that have not
        wait_for(lambda: len(self.pods(handle)) >= all_pods, f"{handle.name}'s pods", WAIT_S)
        index = "batch.kubernetes.io/job-completion-index"
        found = [pod["metadata"]["labels"][index] for pod in self.pods(handle)]
        return [found.count(one) for one in sorted(set(found))]

    def num_processes(self, handle: RunHandle) -> int:
        """Pods that are there, once those that are ending have ended. Asked of the server: a watch may show what was before an order."""
        fresh = self.launcher()

        def settled() -> bool:
            fresh.forget(handle)
            return fresh.describe(handle).phase != Phase.STOPPING

        wait_for(settled, f"{handle.name}'s pods to end", WAIT_S)
        return len([pod for pod in self.pods(handle) if pod["status"].get("phase") in ("Pending", "Running")])

    def pods(self, handle: RunHandle) -> list[Obj]:
        return self.pods_of(handle.name)

    def pods_of(self, name: str) -> list[Obj]:
        labels = f"jobset.sigs.k8s.io/jobset-name={name}"
        found: list[Obj] = self.kube.list(self.path("pods"), labels=labels, what="list pods")["items"]
        return found

    # --- making

    def make_queue(self, cpus: int, *, topology: bool) -> None:
        """A flavour for fake nodes, a ClusterQueue that preempts by priority, a LocalQueue, two priorities."""
        name = self.namespace
        toleration = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake", "effect": "NoSchedule"}
        flavor: Obj = {"tolerations": [toleration]}
        if topology:
            levels = [{"nodeLabel": label} for label in ("stagecoach.dev/block", "stagecoach.dev/rack", "kubernetes.io/hostname")]
            named: Obj = {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "Topology",
                "metadata": {"name": "test"},
                "spec": {"levels": levels},
            }
            self.kube.apply(paths.of(paths.KUEUE, "topologies", None, "test"), named, manager="tests", what="apply a topology")
            flavor |= {"nodeLabels": {"type": "kwok"}, "topologyName": "test"}
        self._create("ResourceFlavor", {"metadata": {"name": name}, "spec": flavor})
        quotas = [{"name": "cpu", "nominalQuota": cpus}, {"name": "memory", "nominalQuota": "256Gi"}]
        groups = [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}]
        chosen = {"matchLabels": {"kubernetes.io/metadata.name": name}}
        queue = {"namespaceSelector": chosen, "resourceGroups": groups, "preemption": {"withinClusterQueue": "LowerPriority"}}
        self._create("ClusterQueue", {"metadata": {"name": name}, "spec": queue})
        self._create("LocalQueue", {"metadata": {"name": QUEUE}, "spec": {"clusterQueue": name}}, namespace=name)
        for priority, value in ((LOW, 100), (HIGH, 1000)):
            body = {"metadata": {"name": priority}, "value": value}
            self.kube.apply(
                paths.of(paths.KUEUE, "workloadpriorityclasses", None, priority),
                {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass", **body},
                manager="tests",
                what="apply a priority",
            )

    def close(self) -> None:
        """Nothing is left but the bucket."""
        for launcher_job in JobsetLauncher(self.kube, self.site()).list():
            self.kube.delete(self.jobset_path(launcher_job.name), uid=None, what="delete a jobset")
        for path in (
            paths.of(paths.CORE, "namespaces", None, self.namespace),
            paths.of(paths.KUEUE, "clusterqueues", None, self.namespace),
            paths.of(paths.KUEUE, "resourceflavors", None, self.namespace),
        ):
            try:
                self.kube.delete(path, uid=None, what=f"delete {path}")
            except NotFound:
                pass

    def path(self, kind: str, name: str | None = None) -> str:
        return paths.of(paths.CORE, kind, self.namespace, name)

    def jobset_path(self, name: str) -> str:
        return paths.of(paths.JOBSETS, "jobsets", self.namespace, name)

    def _create(self, kind: str, body: Obj, *, namespace: str | None = None) -> None:
        plural, core = f"{kind.lower()}s", kind == "Namespace"
        path = paths.of(paths.CORE if core else paths.KUEUE, plural, namespace)
        version = "v1" if core else "kueue.x-k8s.io/v1beta2"
        self.kube.create(path, {"apiVersion": version, "kind": kind, **body}, what=f"create {plural}")


def make_bucket(name: str) -> str:
    """A bucket of the cluster's S3 server."""
    import s3fs

    s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"]).mkdir(name)
    return name
