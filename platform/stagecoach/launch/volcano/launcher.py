"""The `kubernetes` launcher: the same LaunchSpec as a Volcano Job. Cancel and pause are Volcano's AbortJob, unpause its ResumeJob."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.errors import AlreadyExists
from stagecoach.launch.kube.launcher import ClusterLauncher, check_root
from stagecoach.launch.kube.marks import CANCELLED, STOPPED, WHY_STOPPED
from stagecoach.launch.kube.options import parse_options
from stagecoach.launch.kube.podstate import read_pod
from stagecoach.launch.kube.store import JobStore, cancelled_for_good
from stagecoach.launch.ledger_view import LedgerRead
from stagecoach.launch.volcano.objects import JOB_LABEL, build_volcano_job
from stagecoach.launch.volcano.phases import OVER, Seen, job_state, stop_of

Obj = dict[str, Any]

API_VERSION = "batch.volcano.sh/v1alpha1"


@dataclass(frozen=True)
class VolcanoApi(JobStore):
    """The Volcano Jobs of one namespace. Orders are Command objects, which Volcano carries out and removes."""

    group: ClassVar[str] = paths.VOLCANO
    plural: ClassVar[str] = "jobs"
    kind: ClassVar[str] = "volcano job"

    def see(self, name: str, uid: str) -> Seen | None:
        """All that is known of the job. None when it is not there, or is another one of that name."""
        job = self.get(name)
        if job is None or job["metadata"]["uid"] != uid:
            return None
        pods = self.kube.list(self.pods, labels=f"{JOB_LABEL}={name}", what=f"list pods of {name}")["items"]
        return Seen(job=job, group=self._group(job), pods=tuple(_with_index(read_pod(pod), pod) for pod in pods))

    def stop(self, thing: Obj, why: str, *, because: str = "") -> None:
        if (thing.get("status") or {}).get("state", {}).get("phase") in (*OVER, "Completed") or stop_of(thing) in (why, CANCELLED):
            return
        self.merge(thing, {"metadata": {"annotations": {STOPPED: why, WHY_STOPPED: because or None}}})
        self._order(thing, "AbortJob")

    def let_go(self, thing: Obj) -> None:
        if stop_of(thing) == CANCELLED:
            raise cancelled_for_good(thing["metadata"]["name"])
        self.merge(thing, {"metadata": {"annotations": {STOPPED: None, WHY_STOPPED: None}}})
        self._order(thing, "ResumeJob")

    def _order(self, job: Obj, action: str) -> None:
        """One Command a job and action: a repeated order changes nothing while the first is not carried out."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        target = {"apiVersion": API_VERSION, "kind": "Job", "name": name, "uid": uid, "controller": True, "blockOwnerDeletion": True}
        command = {
            "apiVersion": "bus.volcano.sh/v1alpha1",
            "kind": "Command",
            "metadata": {"name": f"{name}-{action.lower()}", "namespace": self.namespace, "ownerReferences": [target]},
            "action": action,
            "target": target,
        }
        try:
            self.kube.create(paths.of(paths.VOLCANO_BUS, "commands", self.namespace), command, what=f"order {action} of {name}")
        except AlreadyExists:
            return

    def _group(self, job: Obj) -> Obj | None:
        """Volcano names it after the job and its uid. It only explains, so nothing of it is needed."""
        name = f"{job['metadata']['name']}-{job['metadata']['uid']}"
        try:
            return self.kube.get(
                paths.of(paths.VOLCANO_SCHEDULING, "podgroups", self.namespace, name), what="read podgroup", deadline_s=5.0
            )
        except StagecoachError:
            return None


class VolcanoLauncher(ClusterLauncher):
    """Jobs of one namespace."""

    name = "kubernetes"
    pod_label = JOB_LABEL

    @property
    def store(self) -> VolcanoApi:
        return VolcanoApi(self.kube, self.site.namespace)

    def build(self, spec: LaunchSpec) -> Obj:
        check_root(spec.job_uri, self.site)
        site = parse_options(self.site.pod_settings())
        options = replace(
            site,
            queue=spec.queue,
            priority_class=spec.priority,
            topology=None,
            grace=spec.grace_s,
            shm_gb=spec.resources.shm_gb * spec.ranks_per_node or None,
            secrets=(*site.secrets, *spec.secrets),
            excluded_nodes=spec.excluded_nodes,
        )
        try:
            return build_volcano_job(spec, options, module=self.module)
        except ModuleNotFoundError as error:
            missing = (error.name or "torchx").partition(".")[0]
            raise ConfigError(
                f"the kubernetes launcher makes its objects through TorchX; no {missing} is installed: pip install 'stagecoach[kubernetes]'"
            ) from error

    def check(self, thing: Obj) -> None:
        queue = thing["spec"]["queue"]
        self.store.require(
            paths.of(paths.VOLCANO_SCHEDULING, "queues", None, queue),
            f"queue={queue!r}: no such Volcano queue; `kubectl get queues.scheduling.volcano.sh` lists what exists",
        )

    def look(self, handle: RunHandle) -> Seen | None:
        return self.store.see(handle.name, handle.uid)

    def object_of(self, seen: Seen) -> Obj:
        return seen.job

    def state_of(self, seen: Seen, read: LedgerRead) -> tuple[JobState, bool]:
        state = job_state(seen, None if read.trouble else read.view, ledger_code=read.exit_code)
        return state, stop_of(seen.job) == CANCELLED

    def forget(self, handle: RunHandle) -> None:
        """Nothing is kept between looks."""


def _with_index(view: Any, pod: Obj) -> Any:
    """The node's index: TorchX gives every node a task of its own."""
    index = (pod["metadata"].get("labels") or {}).get("torchx.pytorch.org/replica-id", "0")
    return replace(view, index=int(index) if index.isdigit() else 0)
