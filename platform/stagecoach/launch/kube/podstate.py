"""What a pod says of itself, read once from the API's object. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stagecoach.constants import CANNOT_START, ExitCode
from stagecoach.contract.names import whole_number

Obj = dict[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
HOPELESS = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "ImagePullBackOff", "ErrImagePull")
QUIET = ("ContainerCreating", "PodInitializing", "")
SIGKILLED = 137
SIGNALLED = 128  # and more: by which signal it was killed


@dataclass(frozen=True, kw_only=True)
class PodView:
    """One pod. `waiting` is why its container does not start, `unplaced` why it has no node."""

    name: str
    uid: str = ""
    index: int = 0
    phase: str = "Pending"
    node: str | None = None
    address: str | None = None
    is_leaving: bool = False  # deleted, and not gone yet
    is_cut_off: bool = False  # its kubelet has fallen silent
    held_by: tuple[str, ...] = ()  # finalizers: who must look at it before it may go
    exit_code: int | None = None
    ended_because: str = ""  # OOMKilled, Error, Evicted
    waiting: str = ""
    waiting_says: str = ""
    unplaced: str = ""
    started: str | None = None
    created: str | None = None

    @property
    def is_alive(self) -> bool:
        """It may still hold a device."""
        return self.phase in ("Pending", "Running") and (self.node is not None or self.phase == "Running")

    @property
    def has_ended(self) -> bool:
        """No container of it runs, or will."""
        return self.phase not in ("Pending", "Running")

    @property
    def is_running(self) -> bool:
        return self.phase == "Running" and not self.is_leaving

    @property
    def is_hopeless(self) -> bool:
        return self.waiting in HOPELESS and not self.is_leaving


def read_pod(pod: Obj) -> PodView:
    """From the API's object."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    state: Obj = next((item.get("state") or {} for item in status.get("containerStatuses") or ()), {})
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    phase = status.get("phase") or "Pending"
    code = ended.get("exitCode")
    if code is None and phase == "Failed":  # evicted by its kubelet, or its node was lost
        code = SIGKILLED
    return PodView(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        index=whole_number(labels.get(INDEX, "")) or 0,
        phase=phase,
        node=spec.get("nodeName"),
        address=status.get("podIP"),
        is_leaving=bool(metadata.get("deletionTimestamp")),
        is_cut_off=_is_cut_off(status),
        held_by=tuple(metadata.get("finalizers") or ()),
        exit_code=code,
        ended_because=ended.get("reason") or status.get("reason") or "",
        waiting=waiting.get("reason") or "",
        waiting_says=waiting.get("message") or "",
        unplaced=_unplaced(status),
        started=(state.get("running") or {}).get("startedAt"),
        created=metadata.get("creationTimestamp"),
    )


def _unplaced(status: Obj) -> str:
    for item in status.get("conditions") or ():
        if item.get("type") == "PodScheduled" and item.get("status") == "False":
            return item.get("message") or item.get("reason") or ""
    return ""


def _is_cut_off(status: Obj) -> bool:
    """A kubelet sets Ready by ContainersReady, and says why where they differ. Kubernetes' node controller takes Ready alone away, without
    a reason, from all pods of a node whose kubelet no longer renews its lease (`MarkPodsNotReady`); one that is heard again sets it anew
    within seconds. So nobody needs the right to read nodes for it.
    """
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    ready, containers = conditions.get("Ready") or {}, conditions.get("ContainersReady") or {}
    return ready.get("status") == "False" and not ready.get("reason") and containers.get("status") == "True"


def exit_code_of(codes: Iterable[int]) -> int:
    """The job's code from its pods': a fatal one (40-49) wins, then any crash (75), then a stop, then done."""
    meant = [code if code in (0, ExitCode.STOPPED) or 40 <= code <= 49 else int(ExitCode.RETRY) for code in codes]
    for wanted in (range(40, 50), [int(ExitCode.RETRY)], [int(ExitCode.STOPPED)]):
        found = [code for code in meant if code in wanted]
        if found:
            return found[0]
    return int(ExitCode.DONE)


def told(pod: PodView) -> str:
    """What this pod left behind. Who is killed by a signal other than SIGTERM says nothing more."""
    where = f"node {pod.index}" + (f" on {pod.node}" if pod.node else "")
    why = f", {pod.ended_because}" if pod.ended_because not in ("", "Error", "Completed") else ""
    if pod.exit_code is not None and pod.exit_code > SIGNALLED and pod.exit_code != ExitCode.STOPPED:
        return f"{where} died without a word (exit code {pod.exit_code}{why})"
    return f"{where} ended with {pod.exit_code}" + (f" ({why[2:]})" if why else "")


def starting_trouble(pods: Sequence[PodView]) -> str:
    """Why pods do not start, in the cluster's words; "" where nothing is wrong."""
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.waiting not in QUIET:
            says = f": {pod.waiting_says}" if pod.waiting_says else ""
            return f"pod {pod.name} {CANNOT_START} ({pod.waiting}{says})"
        if pod.unplaced and not pod.is_leaving:
            return f"pod {pod.name} has no node: {pod.unplaced}"
    return ""
