"""The objects of one kind in one namespace: read, create-or-attach, change, delete. The object's name is the lock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import AlreadyExists, Conflict, Denied, NotFound, UnknownField
from stagecoach.launch.kube.marks import MANAGED_BY, MANAGER, RUN, TOUCHED, check_same

Obj = dict[str, Any]

GONE_S = 20.0  # beyond the grace period
POLL_S = 0.3


@dataclass(frozen=True)
class JobStore:
    """Jobs of one kind. Subclasses say which, and how one is told to stop."""

    kube: Kube
    namespace: str

    group: ClassVar[str] = ""
    plural: ClassVar[str] = ""
    kind: ClassVar[str] = ""  # for a person
    strict: ClassVar[bool] = False  # a field that the cluster does not know is an error

    # --- reading

    def get(self, name: str) -> Obj | None:
        """The object, or None. One that is being deleted is still there."""
        try:
            return self.kube.get(self.path(name), what=f"read {self.kind} {self.namespace}/{name}")
        except NotFound:
            return None

    def list(self, run_id: str | None = None) -> list[Obj]:
        """Ours, by name; those being deleted left out."""
        labels = f"{MANAGED_BY}={MANAGER}" + (f",{RUN}={run_id}" if run_id else "")
        found = self.kube.list(self.path(), labels=labels, what=f"list {self.kind}s of {self.namespace}")["items"]
        return [item for item in found if not item["metadata"].get("deletionTimestamp")]

    # --- writing

    def create_or_attach(self, wanted: Obj) -> Obj:
        """The object of that name, made now or before. Raises NameTaken with what differs; ConfigError where a stranger has the name, or
        for what the cluster refuses or, with `strict`, does not know."""
        name = wanted["metadata"]["name"]
        until = time.monotonic() + self.kube.deadline_s
        while True:
            try:
                return self.kube.create(self.path(), wanted, what=f"create {self.kind} {self.namespace}/{name}", strict=self.strict)
            except AlreadyExists:
                there = self.get(name)
            except UnknownField:  # said before the name is looked up: a job that runs already is attached to all the same
                there = self.get(name)
                if there is None:
                    raise
            if there is not None and not there["metadata"].get("deletionTimestamp"):
                check_same(there, wanted)
                return there
            if time.monotonic() > until:
                raise ClusterUnavailable(f"{self.kind} {self.namespace}/{name} is being deleted and is not gone yet; submit again later")
            time.sleep(POLL_S)

    def stop(self, thing: Obj, why: str, *, because: str = "") -> None:
        """Takes its place away; SIGTERM and the grace period follow. Idempotent."""
        raise NotImplementedError

    def let_go(self, thing: Obj) -> None:
        """Takes a pause back. Raises ConfigError for a job that was cancelled."""
        raise NotImplementedError

    def delete(self, thing: Obj, *, grace_s: float) -> None:
        """Pods first, with their grace period; returns when it is gone, or the cluster has had time enough to end it. Idempotent."""
        name, uid = thing["metadata"]["name"], thing["metadata"]["uid"]
        try:
            self.kube.delete(self.path(name), uid=uid, what=f"delete {self.kind} {self.namespace}/{name}")
        except (NotFound, Conflict):
            return
        self._wait(lambda: (self.get(name) or {"metadata": {"uid": ""}})["metadata"]["uid"] != uid, grace_s + GONE_S)

    def force_away(self, pod: str, uid: str) -> None:
        """Removes a pod's object without waiting for its node. Idempotent."""
        path = paths.of(paths.CORE, "pods", self.namespace, pod)
        try:
            self.kube.delete(path, uid=uid, now=True, what=f"let pod {self.namespace}/{pod} go")
        except (NotFound, Conflict):
            return

    def touch(self, thing: Obj) -> None:
        """Changes nothing but a note, so that controllers that missed the object look at it. Idempotent."""
        try:
            self.merge(thing, {"metadata": {"annotations": {TOUCHED: datetime.now(UTC).isoformat()}}})
        except NotFound:
            return

    def merge(self, thing: Obj, change: Obj) -> None:
        """A merge patch of the object."""
        name = thing["metadata"]["name"]
        self.kube.merge(self.path(name), change, what=f"change {self.kind} {self.namespace}/{name}")

    # --- paths

    def path(self, name: str | None = None) -> str:
        return paths.of(self.group, self.plural, self.namespace, name)

    @property
    def pods(self) -> str:
        return paths.of(paths.CORE, "pods", self.namespace)

    def require(self, path: str, missing: str) -> None:
        """Raises ConfigError(`missing`) where nothing is at `path`. What we may not read is not checked."""
        try:
            self.kube.get(path, what=f"read {path.rsplit('/', 2)[-2]}")
        except NotFound:
            raise ConfigError(missing) from None
        except Denied:
            return

    def _wait(self, is_so: Callable[[], bool], limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while not is_so() and time.monotonic() < until:
            time.sleep(POLL_S)


def cancelled_for_good(name: str) -> ConfigError:
    """Of whoever wants to let a cancelled job go."""
    return ConfigError(f"{name!r} was cancelled, which is for good; submit it again")
