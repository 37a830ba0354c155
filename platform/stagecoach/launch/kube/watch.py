"""Objects of one selector, kept as the cluster has them by a watch, so that looking often costs the API server nothing.

What goes wrong with watches elsewhere is met here: the server forgets a version (410: all is listed anew), a connection falls silent and
does not end (nothing for SILENCE_S: begun anew; the server sends bookmarks and ends each watch after WATCH_S), an event is missed (a list
every RELIST_S). Whoever asks learns whether the picture is fresh, and asks the server itself where it is not.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from loguru import logger

from stagecoach.errors import ClusterUnavailable, StagecoachError
from stagecoach.jitter import jitter
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import Expired, classify

Obj = dict[str, Any]

WATCH_S = 60  # the server ends a watch after so long, by our wish
SILENCE_S = 75.0  # and a connection that has said nothing for so long is dead
RELIST_S = 600.0
PAUSE_S = 1.0  # after a failure, and doubled to
LONGEST_PAUSE_S = 15.0


class Reflector:
    """A thread that lists, then watches. `objects` gives copies of nothing: callers must not change what they get. `group` says whose an
    object is, so that whoever asks for one job's does not go through those of thousands."""

    def __init__(
        self,
        kube: Kube,
        path: str,
        *,
        what: str,
        labels: str = "",
        fields: str = "",
        group: Callable[[Obj], str] = lambda _: "",
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kube, self.path, self.what, self.labels, self.fields = kube, path, what, labels, fields
        self._group, self._clock, self.silence_s = group, clock, silence_s
        self._lock = threading.Lock()
        self._groups: dict[str, dict[str, Obj]] = {}  # group -> uid -> object
        self._group_of: dict[str, str] = {}  # uid -> group
        self._version = ""
        self._heard_at: float | None = None
        self._listed_at = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"watch {self.what}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The thread ends with the next event or the end of its watch."""
        self._stopped.set()

    def objects(self, group: str | None = None) -> list[Obj] | None:
        """By name; of one group, or all. None when the picture is not fresh: nothing was heard yet, or for longer than a live watch can be
        silent."""
        with self._lock:
            if self._heard_at is None or self._clock() - self._heard_at >= self.silence_s:
                return None
            groups = self._groups.values() if group is None else [self._groups.get(group, {})]
            return sorted((item for found in groups for item in found.values()), key=lambda item: str(item["metadata"]["name"]))

    def _run(self) -> None:
        pause = PAUSE_S
        while not self._stopped.is_set():
            try:
                self.round()
                pause = PAUSE_S
                continue
            except ClusterUnavailable as error:
                logger.debug("watch of {}: {}", self.what, error)
            except StagecoachError as error:  # not allowed, or no such kind: it stays stale, and callers see the error themselves
                logger.debug("watch of {} ends: {}", self.what, error)
                return
            self._stopped.wait(pause * jitter.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def round(self) -> None:
        """One list if one is due, and one watch to its end. Raises ClusterUnavailable, and what may not be read."""
        try:
            if not self._version or self._clock() - self._listed_at > RELIST_S:
                self.list()
            self.watch()
        except Expired:
            self._version = ""  # listed anew in the next round

    def list(self) -> None:
        """All of it as it is now."""
        found = self.kube.list(self.path, labels=self.labels, fields=self.fields, what=self.what)
        with self._lock:
            self._groups, self._group_of = {}, {}
            for item in found.get("items") or ():
                self._put(item)
            self._version = found["metadata"]["resourceVersion"]
            self._listed_at = self._heard_at = self._clock()

    def watch(self) -> None:
        """Follows changes since the version that is known, until the server ends it."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
            "resourceVersion": self._version,
            "labelSelector": self.labels,
            "fieldSelector": self.fields,
        }
        for line in self.kube.stream(self.path, query=query, silence_s=self.silence_s, what=self.what):
            if self._stopped.is_set():
                return
            self.take(json.loads(line))
        with self._lock:
            self._heard_at = self._clock()  # it ended in order: nothing was missed

    def take(self, event: Obj) -> None:
        """One event. Raises Expired, ClusterUnavailable for an event that is an error."""
        kind, thing = event["type"], event["object"]
        if kind == "ERROR":
            raise classify(int(thing.get("code") or 500), json.dumps(thing), what=self.what)
        with self._lock:
            self._version = thing["metadata"]["resourceVersion"]
            self._heard_at = self._clock()
            if kind == "DELETED":
                self._drop(thing["metadata"]["uid"])
            elif kind != "BOOKMARK":
                self._put(thing)

    def _put(self, thing: Obj) -> None:
        uid, group = thing["metadata"]["uid"], self._group(thing)
        self._drop(uid)  # a label may have changed
        self._groups.setdefault(group, {})[uid] = thing
        self._group_of[uid] = group

    def _drop(self, uid: str) -> None:
        group = self._group_of.pop(uid, None)
        if group is not None:
            del self._groups[group][uid]
            if not self._groups[group]:
                del self._groups[group]
