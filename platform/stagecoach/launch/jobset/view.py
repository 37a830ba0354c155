"""Jobs that somebody looks at again and again, kept by watches: of one job, or of the namespace where many are looked at."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stagecoach.launch.jobset.phases import Seen
from stagecoach.launch.jobset.reader import JOB_UID, JOBSET_NAME, JobsetApi, assemble
from stagecoach.launch.kube.marks import MANAGED_BY, MANAGER
from stagecoach.launch.kube.watch import Reflector

Obj = dict[str, Any]

SINGLE = 4  # so many jobs have watches of their own; with more, three watches of all of ours are cheaper


def uid_of(thing: Obj) -> str:
    """Its own."""
    return str(thing["metadata"]["uid"])


def label(name: str) -> Callable[[Obj], str]:
    """What an object's label of that name says; "" without one."""
    return lambda thing: (thing["metadata"].get("labels") or {}).get(name, "")


class View:
    """Three watches. `name` and `uid`: of one job; without them, of all that is ours in the namespace."""

    def __init__(self, api: JobsetApi, name: str | None = None, uid: str | None = None) -> None:
        self.api = api
        ours = "" if name else f"{MANAGED_BY}={MANAGER}"
        one = f"metadata.name={name}" if name else ""
        own, owner, whose = f"{JOBSET_NAME}={name}" if name else ours, f"{JOB_UID}={uid}" if uid else "", name or api.namespace
        self.jobsets = Reflector(api.kube, api.path(), labels=ours, fields=one, group=uid_of, what=f"jobsets of {whose}")
        self.pods = Reflector(api.kube, api.pods, labels=own, group=label(JOBSET_NAME), what=f"pods of {whose}")
        self.workloads = Reflector(api.kube, api.workloads, labels=owner, group=label(JOB_UID), what=f"workloads of {whose}")
        for reflector in self._all:
            reflector.start()

    @property
    def _all(self) -> tuple[Reflector, ...]:
        return (self.jobsets, self.pods, self.workloads)

    def see(self, name: str, uid: str) -> tuple[bool, Seen | None]:
        """(whether the picture is fresh, the job in it)."""
        jobsets, pods, workloads = self.jobsets.objects(uid), self.pods.objects(name), self.workloads.objects(uid)
        if jobsets is None or pods is None or workloads is None:
            return False, None
        if not jobsets:
            return False, None  # deleted, or younger than the watch: the server knows
        return True, assemble(jobsets[0], workloads[0] if workloads else None, pods, lambda: self.api.jobs_of(name))

    def close(self) -> None:
        for reflector in self._all:
            reflector.stop()


@dataclass
class Looks:
    """Decides who is watched: whoever is looked at a second time. Any number of threads may look."""

    api: JobsetApi
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _looked: set[str] = field(default_factory=set)
    _views: dict[str, View] = field(default_factory=dict)
    _wide: View | None = None

    def see(self, name: str, uid: str) -> Seen | None:
        """The job, from a watch where one is fresh, else from the server."""
        view = self._view(name, uid)
        if view is not None:
            is_fresh, seen = view.see(name, uid)
            if is_fresh:
                return seen
        return self.api.see(name, uid)

    def forget(self, uid: str) -> None:
        """An order was given, or the job is over: the next look goes to the server."""
        with self._lock:
            self._looked.discard(uid)
            view = self._views.pop(uid, None)
        if view is not None:
            view.close()

    def _view(self, name: str, uid: str) -> View | None:
        with self._lock:
            if uid not in self._looked:
                self._looked.add(uid)
                return None
            if self._wide is None and uid not in self._views:
                if len(self._views) < SINGLE:
                    self._views[uid] = View(self.api, name, uid)
                else:
                    self._wide = View(self.api)
            return self._views.get(uid) or self._wide
