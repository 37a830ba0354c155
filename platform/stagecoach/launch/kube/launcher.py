"""What all launchers of a cluster do alike; subclasses say which object a job is, and what its states mean.

The cluster object's name is the lock, the bucket the memory. Any number of launchers, in any number of processes, see the same jobs.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from loguru import logger

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState, LaunchSpec, LogLine, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import SUPERVISOR
from stagecoach.launch.kube.apart import keep_apart
from stagecoach.launch.kube.client import DEADLINE_S, Kube, connect
from stagecoach.launch.kube.logs import job_lines
from stagecoach.launch.kube.marks import CANCELLED, GIVEN_UP, JOB_URI, PAUSED, annotations, is_ours, run_of, spec_in
from stagecoach.launch.kube.podstate import PodView
from stagecoach.launch.kube.store import JobStore
from stagecoach.launch.kube.tending import Tending
from stagecoach.launch.ledger_view import LedgerRead, end_dead_attempt, read_ledger
from stagecoach.site import Site, load_site

Obj = dict[str, Any]

LEDGER_S = 2.0


class ClusterLauncher(ABC):
    """Jobs of one namespace. No cluster is asked before one is needed."""

    name: str
    chooses_machines = True  # `excluded_nodes` of a spec counts

    def __init__(
        self, kube: Kube | None = None, site: Site | None = None, *, module: str = SUPERVISOR, patience_s: float | None = None
    ) -> None:
        """`kube` None: the kubeconfig's cluster, or the one this process is a pod of. `module` is what `python -m` starts on every node.
        `patience_s`: how long a call may wait for a cluster that does not answer."""
        self.site, self.module = site or load_site(), module
        self._kube, self._patience_s = kube, patience_s or DEADLINE_S
        self._tending = Tending()
        self._ledgers: dict[str, tuple[float, LedgerRead]] = {}

    @property
    def kube(self) -> Kube:
        """The cluster, connected to on first use."""
        if self._kube is None:
            self._kube = connect(deadline_s=self._patience_s)
        return self._kube

    @property
    @abstractmethod
    def store(self) -> JobStore:
        """The objects that jobs are."""

    @property
    @abstractmethod
    def pod_label(self) -> str:
        """The label of pods that holds their job's name."""

    @abstractmethod
    def build(self, spec: LaunchSpec) -> Obj:
        """The object; no cluster is asked. Raises ConfigError."""

    @abstractmethod
    def check(self, thing: Obj) -> None:
        """Raises ConfigError for what the object names and the cluster does not have."""

    @abstractmethod
    def look(self, handle: RunHandle) -> Any | None:
        """All that is known of the job; None when it is gone. For `object_of` and `state_of`."""

    @abstractmethod
    def object_of(self, seen: Any) -> Obj: ...

    @abstractmethod
    def state_of(self, seen: Any, read: LedgerRead) -> tuple[JobState, bool]:
        """(its state, whether we cancelled it)."""

    def is_ignored(self, seen: Any) -> bool:
        """Whether it waits for a queue that shows no sign of knowing it."""
        return False

    @abstractmethod
    def forget(self, handle: RunHandle) -> None:
        """What was seen of the job is old now."""

    # --- submitting

    def submit(self, spec: LaunchSpec) -> RunHandle:
        """Create or attach. Raises NameTaken with what differs, ConfigError for what the cluster refuses or does not have."""
        wanted = self.build(spec)
        self.check(wanted)
        thing = self.store.create_or_attach(wanted)
        if self.site.pods_apart:
            keep_apart(self.kube, thing, self.pod_label)
        return self._handle(thing)

    def dry_run(self, spec: LaunchSpec) -> str:
        """The object that `submit` would create, as YAML; no cluster is asked."""
        import yaml

        return str(yaml.safe_dump(self.build(spec), sort_keys=False, width=140))

    # --- looking

    def attach(self, name: str) -> RunHandle | None:
        found = self.store.get(name)
        return self._handle(found) if found is not None and is_ours(found) else None

    def describe(self, handle: RunHandle) -> JobState:
        """The cluster first, then the ledger. An attempt found dead with its whole job gets its end written, so that it can be explained
        when the pods are gone. UNKNOWN when the cluster has no such job."""
        seen = self.look(handle)
        if seen is None or self.object_of(seen)["metadata"].get("deletionTimestamp"):
            reason = f"no {self.store.kind} {handle.name!r} (uid {handle.uid}) in namespace {self.site.namespace}"
            return JobState(phase=Phase.UNKNOWN, reason=reason)
        spec = spec_in(self.object_of(seen))
        folder = JobFolder.open(spec["job_uri"])
        state, cancelled = self.state_of(seen, self._ledger(handle, folder, spec["submission"]))
        if state.phase.is_terminal:  # a last look at the server and the bucket, so that nothing old is told of an end
            self.forget(handle)
            self._ledgers.pop(handle.uid, None)
            state, cancelled = self.state_of(self.look(handle) or seen, self._ledger(handle, folder, spec["submission"]))
        read = self._ledger(handle, folder, spec["submission"])
        trouble = read.trouble
        if state.phase.is_terminal and state.exit_code != ExitCode.DONE and not trouble:
            trouble = end_dead_attempt(folder, read.view.newest, cancelled=cancelled)
        return _with_trouble(state, trouble)

    def _ledger(self, handle: RunHandle, folder: JobFolder, submission: int) -> LedgerRead:
        """Read at most every LEDGER_S: whoever waits looks more often, and each reading is several requests."""
        now = time.monotonic()
        known = self._ledgers.get(handle.uid)
        if known is None or now - known[0] > LEDGER_S:
            known = self._ledgers[handle.uid] = (now, read_ledger(folder, submission))
        return known[1]

    def tend(self, handle: RunHandle) -> None:
        """What whoever waits for the job does for it, at every look: a job that names an image or a secret that is not there is given up
        (it ends with 40), pods of a lost node are let go, for whom the restart of a gang would wait for ever, and a job is touched that its
        queue has overlooked."""
        seen = self.look(handle)
        if seen is None:
            return
        thing = self.object_of(seen)
        if self._tending.overlooked(handle.uid, self.is_ignored(seen)):
            logger.warning(f"{handle.name}: its queue has not taken it up yet; it is touched, so that it is looked at again")
            self.store.touch(thing)
        if not any(pod.is_hopeless or pod.is_leaving for pod in seen.pods):
            return
        if why := self._tending.hopeless(seen.pods):
            logger.warning(f"{handle.name}: {why}")
            self.store.stop(thing, GIVEN_UP, because=why)
            self.forget(handle)
        for pod in self._tending.stuck(seen.pods, grace_s=float(spec_in(thing)["grace_s"])):
            if turn := self._tending.turn(pod.uid):
                logger.warning(f"{handle.name}: {_taken_for_dead(pod, is_first=turn == 1)}")
                self.store.force_away(pod.name, pod.uid)

    def list(self, *, run_id: str | None = None) -> list[RunHandle]:
        found = [self._handle(thing) for thing in self.store.list(run_id) if is_ours(thing)]
        return [handle for handle in found if run_id is None or run_of(handle.job_uri) == run_id]

    def logs(self, handle: RunHandle, *, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """Ranks' lines from the bucket, which knows their attempt; supervisors' and what is not shipped yet from pods that are there."""
        if self._object(handle) is None:
            return iter(())

        def has_ended() -> bool:
            return self.describe(handle).phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.UNKNOWN)

        pods = (self.kube, self.site.namespace, f"{self.pod_label}={handle.name}")
        return job_lines(*pods, JobFolder.open(handle.job_uri), rank=rank, attempt=attempt, follow=follow, has_ended=has_ended)

    # --- ending

    def cancel(self, handle: RunHandle) -> None:
        """Returns when the cluster has taken the order. Ranks get SIGTERM and the grace period, and save."""
        if thing := self._object(handle):
            self.store.stop(thing, CANCELLED)

    def pause(self, handle: RunHandle, *, because: str = "") -> None:
        """As cancel, and `unpause` lets it go on under the same name, from what it saved."""
        if thing := self._object(handle):
            self.store.stop(thing, PAUSED, because=because)

    def unpause(self, handle: RunHandle) -> None:
        """Back into the queue. Raises ConfigError for a job that was cancelled."""
        if thing := self._object(handle):
            self.store.let_go(thing)

    def delete(self, handle: RunHandle) -> None:
        """Its pods end with their grace period; then the name is free."""
        if thing := self._object(handle):
            self.store.delete(thing, grace_s=float(spec_in(thing)["grace_s"]))

    def _object(self, handle: RunHandle) -> Obj | None:
        """For an order: what is known of it is old from now on."""
        self.forget(handle)
        thing = self.store.get(handle.name)
        return thing if thing is not None and thing["metadata"]["uid"] == handle.uid and is_ours(thing) else None

    def _handle(self, thing: Obj) -> RunHandle:
        metadata = thing["metadata"]
        return RunHandle(launcher=self.name, name=metadata["name"], job_uri=annotations(thing)[JOB_URI], uid=metadata["uid"])


def check_root(job_uri: str, site: Site) -> None:
    """Raises ConfigError for a job's folder that lies on this machine: its pods run elsewhere."""
    scheme, found, path = job_uri.partition("://")
    mounts = [volume.split(":")[1] for volume in site.pods.volumes if ":" in volume]
    if not found or scheme == "memory" or (scheme == "file" and not any(path.startswith(f"{mount.rstrip('/')}/") for mount in mounts)):
        raise ConfigError(
            f"root: the job's folder {job_uri} is on this machine, and pods cannot see it; use a bucket (s3://...), "
            "or a claim that is mounted there in the pods and here (pods.volumes of the site)"
        )


def _taken_for_dead(pod: PodView, *, is_first: bool) -> str:
    if is_first:
        return f"node {pod.node} does not confirm that pod {pod.name} is gone; it is taken for dead"
    held = f", held by the finalizers {', '.join(pod.held_by)}; see whether the controllers that set them run" if pod.held_by else ""
    return f"pod {pod.name} of node {pod.node} was let go, and is still there{held}"


def _with_trouble(state: JobState, trouble: str) -> JobState:
    return JobState(
        phase=state.phase,
        reason="; ".join(part for part in (state.reason, trouble) if part),
        since=state.since,
        attempt=state.attempt,
        restarts=state.restarts,
        exit_code=state.exit_code,
    )
