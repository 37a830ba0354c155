"""Reads one job out of the cluster, and writes what we may: create-or-attach, Workload `active`, delete."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.launch.appdef import SPEC_KEY, spec_of
from stagecoach.launch.differences import name_taken
from stagecoach.launch.jobset.objects import DIGEST, MANAGED_BY, MANAGER, QUEUE, RUN, SPEC
from stagecoach.launch.jobset.phases import CANCELLED, STOPPED, WHY_STOPPED, Seen, condition, stop_of
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import AlreadyExists, Conflict, Denied, NotFound
from stagecoach.launch.kube.podstate import read_pod

Obj = dict[str, Any]

JOBSET_NAME = "jobset.sigs.k8s.io/jobset-name"
JOB_UID = "kueue.x-k8s.io/job-uid"
WORKLOAD_S = 15.0  # how long an order waits for Kueue to make the Workload that takes it
GONE_S = 20.0  # beyond the grace period
POLL_S = 0.3


@dataclass(frozen=True)
class JobsetApi:
    """The JobSets of one namespace."""

    kube: Kube
    namespace: str

    # --- reading

    def get(self, name: str) -> Obj | None:
        """The JobSet, or None. One that is being deleted is still there."""
        try:
            return self.kube.get(self._jobset(name), what=f"read jobset {self.namespace}/{name}")
        except NotFound:
            return None

    def see(self, name: str, uid: str | None = None) -> Seen | None:
        """All that is known of the job. None when it is not there, or is another one of that name."""
        jobset = self.get(name)
        if jobset is None or uid not in (None, jobset["metadata"]["uid"]):
            return None
        pods = self.kube.list(self.pods, labels=f"{JOBSET_NAME}={name}", what=f"list pods of {name}")
        return assemble(jobset, self.workload(jobset), pods["items"], lambda: self.jobs_of(name))

    def workload(self, jobset: Obj) -> Obj | None:
        """Kueue's Workload of it."""
        if not is_queued(jobset):
            return None
        uid, name = jobset["metadata"]["uid"], jobset["metadata"]["name"]
        found = self.kube.list(self.workloads, labels=f"{JOB_UID}={uid}", what=f"list workloads of {name}")["items"]
        return found[0] if found else None

    def jobs_of(self, name: str) -> tuple[Obj, ...]:
        """Its Jobs, where we may read them."""
        try:
            return tuple(
                self.kube.list(paths.of(paths.BATCH, "jobs", self.namespace), labels=f"{JOBSET_NAME}={name}", what=f"list jobs of {name}")[
                    "items"
                ]
            )
        except Denied:
            return ()

    def list(self, run_id: str | None = None) -> list[Obj]:
        """Ours, by name; those being deleted left out."""
        labels = f"{MANAGED_BY}={MANAGER}" + (f",{RUN}={run_id}" if run_id else "")
        found = self.kube.list(self._jobset(), labels=labels, what=f"list jobsets of {self.namespace}")["items"]
        return [item for item in found if not item["metadata"].get("deletionTimestamp")]

    # --- writing

    def create_or_attach(self, wanted: Obj) -> Obj:
        """The JobSet of that name, made now or before. Raises NameTaken with what differs; ConfigError where a stranger has the name."""
        name = wanted["metadata"]["name"]
        until = time.monotonic() + self.kube.deadline_s
        while True:
            try:
                return self.kube.create(self._jobset(), wanted, what=f"create jobset {self.namespace}/{name}")
            except AlreadyExists:
                there = self.get(name)
            if there is not None and not there["metadata"].get("deletionTimestamp"):
                check_same(there, wanted)
                return there
            if time.monotonic() > until:
                raise ClusterUnavailable(f"jobset {self.namespace}/{name} is being deleted and is not gone yet; submit again later")
            time.sleep(POLL_S)

    def stop(self, jobset: Obj, why: str, *, because: str = "") -> None:
        """Takes its place away, and keeps it from another: Workload `active: false`. SIGTERM and the grace period follow. Idempotent.

        Raises ClusterUnavailable where Kueue has made no Workload of it.
        """
        if condition(jobset, "Completed").is_true or condition(jobset, "Failed").is_true:
            return
        notes = {STOPPED: why, WHY_STOPPED: because or None}
        if not is_queued(jobset):
            self._merge_jobset(jobset, {"metadata": {"annotations": notes}, "spec": {"suspend": True}})
            return
        workload = self._workload_soon(jobset)
        if stop_of(workload, jobset) in (why, CANCELLED):
            return
        self._merge_workload(workload, {"metadata": {"annotations": notes}, "spec": {"active": False}})

    def let_go(self, jobset: Obj) -> None:
        """Takes a pause back. Raises ConfigError for a job that was cancelled."""
        workload = self._workload_soon(jobset) if is_queued(jobset) else None
        if stop_of(workload, jobset) == CANCELLED:
            raise ConfigError(f"{jobset['metadata']['name']!r} was cancelled, which is for good; submit it again")
        notes = {STOPPED: None, WHY_STOPPED: None}
        if workload is None:
            self._merge_jobset(jobset, {"metadata": {"annotations": notes}, "spec": {"suspend": False}})
        else:
            self._merge_workload(workload, {"metadata": {"annotations": notes}, "spec": {"active": True}})

    def delete(self, jobset: Obj, *, grace_s: float) -> None:
        """Pods first, with their grace period; returns when it is gone, or the cluster has had time enough to end it. Idempotent."""
        name, uid = jobset["metadata"]["name"], jobset["metadata"]["uid"]
        try:
            self.kube.delete(self._jobset(name), uid=uid, what=f"delete jobset {self.namespace}/{name}")
        except (NotFound, Conflict):
            return
        self._wait(lambda: (self.get(name) or {"metadata": {"uid": ""}})["metadata"]["uid"] != uid, grace_s + GONE_S)

    def check_references(self, wanted: Obj) -> None:
        """Raises ConfigError for a queue or priority class that does not exist: Kueue would let the job wait for ever, or never see it.
        What we may not read is not checked."""
        labels = wanted["metadata"]["labels"]
        queue, priority = labels.get(QUEUE), labels.get("kueue.x-k8s.io/priority-class")
        if queue and self._is_absent(paths.of(self._kueue, "localqueues", self.namespace, queue)):
            raise ConfigError(
                f"queue={queue!r}: namespace {self.namespace} has no such LocalQueue; "
                f"`kubectl get localqueues -n {self.namespace}` lists what exists"
            )
        if priority and self._is_absent(paths.of(self._kueue, "workloadpriorityclasses", None, priority)):
            raise ConfigError(
                f"priority_class={priority!r}: no such WorkloadPriorityClass; `kubectl get workloadpriorityclasses` lists what exists"
            )

    def _is_absent(self, path: str) -> bool:
        try:
            self.kube.get(path, what=f"read {path.rsplit('/', 2)[-2]}")
        except NotFound:
            return True
        except Denied:
            return False
        return False

    # --- paths

    @property
    def workloads(self) -> str:
        return paths.of(self._kueue, "workloads", self.namespace)

    @property
    def jobsets(self) -> str:
        return self._jobset()

    @property
    def _kueue(self) -> str:
        return paths.KUEUE

    @property
    def pods(self) -> str:
        return paths.of(paths.CORE, "pods", self.namespace)

    def _jobset(self, name: str | None = None) -> str:
        return paths.of(paths.JOBSETS, "jobsets", self.namespace, name)

    # --- steps

    def _workload_soon(self, jobset: Obj) -> Obj:
        found = self.workload(jobset)
        until = time.monotonic() + WORKLOAD_S
        while found is None:
            if time.monotonic() > until:
                name = jobset["metadata"]["name"]
                raise ClusterUnavailable(
                    f"Kueue has not made a Workload of jobset {self.namespace}/{name}, so it takes no order; see whether Kueue runs "
                    f"(`kubectl get pods -n kueue-system`), or remove the job: kubectl delete jobset -n {self.namespace} {name}"
                )
            time.sleep(POLL_S)
            found = self.workload(jobset)
        return found

    def _merge_workload(self, workload: Obj, change: Obj) -> None:
        name = workload["metadata"]["name"]
        self.kube.merge(f"{self.workloads}/{name}", change, what=f"change workload {self.namespace}/{name}")

    def _merge_jobset(self, jobset: Obj, change: Obj) -> None:
        name = jobset["metadata"]["name"]
        self.kube.merge(self._jobset(name), change, what=f"change jobset {self.namespace}/{name}")

    def _wait(self, is_so: Callable[[], bool], limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while not is_so() and time.monotonic() < until:
            time.sleep(POLL_S)


def is_queued(jobset: Obj) -> bool:
    """Kueue manages it."""
    return QUEUE in (jobset["metadata"].get("labels") or {})


def assemble(jobset: Obj, workload: Obj | None, pods: "list[Obj]", jobs: Callable[[], tuple[Obj, ...]]) -> Seen:
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


def check_same(there: Obj, wanted: Obj) -> None:
    """Raises NameTaken unless both were made from the same spec."""
    old, new = (item["metadata"].get("annotations") or {} for item in (there, wanted))
    name = wanted["metadata"]["name"]
    if DIGEST not in old or DIGEST not in new:
        raise ConfigError(f"a jobset named {name!r} exists that was not made from a launch spec; delete it, or use another name")
    if old[DIGEST] != new[DIGEST]:
        left, right = (spec_of({SPEC_KEY: item[SPEC]}) for item in (old, new))
        assert left is not None
        assert right is not None
        raise name_taken(name, left, right)
