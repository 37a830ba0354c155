"""JobSets with what belongs to them: Kueue's Workload, which takes the orders, and the pods."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from stagecoach.errors import ClusterUnavailable
from stagecoach.launch.jobset.objects import PRIORITY, QUEUE
from stagecoach.launch.jobset.phases import Seen, condition, stop_of
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.errors import Denied
from stagecoach.launch.kube.marks import CANCELLED, STOPPED, WHY_STOPPED
from stagecoach.launch.kube.podstate import read_pod
from stagecoach.launch.kube.store import POLL_S, JobStore, cancelled_for_good

Obj = dict[str, Any]

JOBSET_NAME = "jobset.sigs.k8s.io/jobset-name"
JOB_UID = "kueue.x-k8s.io/job-uid"
WORKLOAD_S = 30.0  # how long an order waits for Kueue to make the Workload that takes it
TOUCH_S = 3.0  # Kueue makes one within a second or two, or has overlooked the JobSet


@dataclass(frozen=True)
class JobsetApi(JobStore):
    """The JobSets of one namespace."""

    group: ClassVar[str] = paths.JOBSETS
    plural: ClassVar[str] = "jobsets"
    kind: ClassVar[str] = "jobset"
    strict: ClassVar[bool] = True  # a failure policy whose patterns are left out makes every failure final

    def see(self, name: str, uid: str | None = None) -> Seen | None:
        """All that is known of the job. None when it is not there, or is another one of that name."""
        jobset = self.get(name)
        if jobset is None or uid not in (None, jobset["metadata"]["uid"]):
            return None
        workload = self.workload(jobset)
        if stop_of(workload, jobset):  # Kueue suspends the JobSet before it gives the place back: read in the other order, both look done
            jobset = self.get(name) or jobset
        pods = self.kube.list(self.pods, labels=f"{JOBSET_NAME}={name}", what=f"list pods of {name}")
        return assemble(jobset, workload, pods["items"], lambda: self.jobs_of(name))

    def workload(self, jobset: Obj) -> Obj | None:
        """Kueue's Workload of it."""
        if not is_queued(jobset):
            return None
        uid, name = jobset["metadata"]["uid"], jobset["metadata"]["name"]
        found = self.kube.list(self.workloads, labels=f"{JOB_UID}={uid}", what=f"list workloads of {name}")["items"]
        return found[0] if found else None

    def jobs_of(self, name: str) -> tuple[Obj, ...]:
        """Its Jobs, where we may read them."""
        path = paths.of(paths.BATCH, "jobs", self.namespace)
        try:
            return tuple(self.kube.list(path, labels=f"{JOBSET_NAME}={name}", what=f"list jobs of {name}")["items"])
        except Denied:
            return ()

    def stop(self, thing: Obj, why: str, *, because: str = "") -> None:
        """Workload `active: false`: its place is taken away, and no other given. SIGTERM and the grace period follow. Idempotent.

        Raises ClusterUnavailable where Kueue has made no Workload of it.
        """
        if condition(thing, "Completed").is_true or condition(thing, "Failed").is_true:
            return
        notes = {STOPPED: why, WHY_STOPPED: because or None}
        if not is_queued(thing):
            self.merge(thing, {"metadata": {"annotations": notes}, "spec": {"suspend": True}})
            return
        workload = self._workload_soon(thing)
        if stop_of(workload, thing) not in (why, CANCELLED):
            self._merge_workload(workload, {"metadata": {"annotations": notes}, "spec": {"active": False}})

    def let_go(self, thing: Obj) -> None:
        workload = self._workload_soon(thing) if is_queued(thing) else None
        if stop_of(workload, thing) == CANCELLED:
            raise cancelled_for_good(thing["metadata"]["name"])
        notes = {STOPPED: None, WHY_STOPPED: None}
        if workload is None:
            self.merge(thing, {"metadata": {"annotations": notes}, "spec": {"suspend": False}})
        else:
            self._merge_workload(workload, {"metadata": {"annotations": notes}, "spec": {"active": True}})

    def check_references(self, wanted: Obj) -> None:
        """Raises ConfigError for a queue or priority class that does not exist: Kueue would let the job wait for ever, or never see it."""
        labels = wanted["metadata"]["labels"]
        if queue := labels.get(QUEUE):
            self.require(
                paths.of(paths.KUEUE, "localqueues", self.namespace, queue),
                f"queue={queue!r}: namespace {self.namespace} has no such LocalQueue; "
                f"`kubectl get localqueues -n {self.namespace}` lists what exists",
            )
        if priority := labels.get(PRIORITY):
            self.require(
                paths.of(paths.KUEUE, "workloadpriorityclasses", None, priority),
                f"priority_class={priority!r}: no such WorkloadPriorityClass; `kubectl get workloadpriorityclasses` lists what exists",
            )

    @property
    def workloads(self) -> str:
        return paths.of(paths.KUEUE, "workloads", self.namespace)

    def _workload_soon(self, jobset: Obj) -> Obj:
        """Kueue's Workload. A JobSet that Kueue has overlooked is touched, so that it looks again: nobody else may be there to do it."""
        began = touched = time.monotonic()
        while (found := self.workload(jobset)) is None:
            time.sleep(POLL_S)
            if time.monotonic() - began > WORKLOAD_S:
                raise self._takes_no_order(jobset["metadata"]["name"])
            if time.monotonic() - touched > TOUCH_S:
                try:
                    self.touch(jobset)
                except ClusterUnavailable as error:  # Kueue's own webhook, for one: the API server takes no change without it
                    raise self._takes_no_order(jobset["metadata"]["name"]) from error
                touched = time.monotonic()
        return found

    def _takes_no_order(self, name: str) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"Kueue has not made a Workload of jobset {self.namespace}/{name}, so it takes no order; see whether Kueue runs "
            f"(`kubectl get pods -n kueue-system`), or remove the job: kubectl delete jobset -n {self.namespace} {name}"
        )

    def _merge_workload(self, workload: Obj, change: Obj) -> None:
        name = workload["metadata"]["name"]
        self.kube.merge(f"{self.workloads}/{name}", change, what=f"change workload {self.namespace}/{name}")


def is_queued(jobset: Obj) -> bool:
    """Kueue manages it."""
    return QUEUE in (jobset["metadata"].get("labels") or {})


def assemble(jobset: Obj, workload: Obj | None, pods: list[Obj], jobs: Callable[[], tuple[Obj, ...]]) -> Seen:
    """One picture. `jobs` are asked for only when the JobSet has failed and no pod tells with what."""
    views = tuple(read_pod(pod) for pod in pods)
    needs_jobs = condition(jobset, "Failed").is_true and not any(view.exit_code for view in views)
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return Seen(
        jobset=jobset,
        workload=workload,
        pods=views,
        jobs=jobs() if needs_jobs else (),
        is_queued=is_queued(jobset),
        nodes=int(template.get("completions") or 1),
    )
