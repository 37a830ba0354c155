"""Lines of pods, out of the API. A kubelet that does not answer (its node is lost) is no error: what it had is in the bucket."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from stagecoach.errors import ClusterUnavailable, StagecoachError
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.podstate import PodView, read_pod

Obj = dict[str, Any]

JOBSET_NAME = "jobset.sigs.k8s.io/jobset-name"
ANSWER_S = 10.0
SILENCE_S = 60.0
POLL_S = 1.0
_TIME = re.compile(rb"^(\d{4}-\d\d-\d\dT[0-9:.]+Z) ")


def pods_of(kube: Kube, namespace: str, labels: str) -> list[PodView]:
    """All pods with these labels."""
    found = kube.list(paths.of(paths.CORE, "pods", namespace), labels=labels, what=f"list pods of {labels}")
    return [read_pod(pod) for pod in found["items"]]


def log_path(namespace: str, pod: str) -> str:
    return f"{paths.of(paths.CORE, 'pods', namespace, pod)}/log"


def pod_lines(kube: Kube, namespace: str, jobset: str, *, index: int, since: datetime | None = None, follow: bool = False) -> Iterator[str]:
    """Lines, ends included, of the newest pod with that completion index. With `follow` to the pod's end, over broken connections."""
    found = [pod for pod in pods_of(kube, namespace, f"{JOBSET_NAME}={jobset}") if pod.index == index and pod.node]
    if not found:
        return
    pod = max(found, key=lambda pod: (pod.created or "", not pod.is_leaving))
    after = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if since else ""
    seen = LineFilter()
    while True:
        query = {"timestamps": "true", "sinceTime": seen.since or after, "follow": "true" if follow else ""}
        try:
            for line in kube.stream(log_path(namespace, pod.name), query=query, silence_s=SILENCE_S, what=f"log of pod {pod.name}"):
                if (text := seen.new(line)) is not None:
                    yield text.decode("utf-8", "replace") + "\n"
        except ClusterUnavailable:
            if not follow:
                raise
        if not follow:
            return
        still = [other for other in pods_of(kube, namespace, f"{JOBSET_NAME}={jobset}") if other.name == pod.name]
        if not still or still[0].phase in ("Succeeded", "Failed"):
            follow = False  # one last look: what was written since the stream broke
        time.sleep(POLL_S)


class LineFilter:
    """Takes lines with times, of streams that begin anew (sinceTime has seconds only), and lets each through once."""

    def __init__(self) -> None:
        self._last = b""
        self._same: set[bytes] = set()  # lines with the last time

    @property
    def since(self) -> str:
        """From when to ask again; "" before the first line."""
        return self._last.decode()[:19] + "Z" if self._last else ""

    def new(self, line: bytes) -> bytes | None:
        """The line without its time, or None when it was let through before."""
        match = _TIME.match(line)
        if match is None:
            return line
        second, _, fraction = match[1][:-1].partition(b".")
        at, text = second + b"." + fraction.ljust(9, b"0"), line[match.end() :]
        if at < self._last or (at == self._last and text in self._same):
            return None
        if at > self._last:
            self._last, self._same = at, set()
        self._same.add(text)
        return text


def read_log(kube: Kube, namespace: str, pod: str, seen: LineFilter) -> list[bytes]:
    """New lines since the last look; none where the pod or its kubelet is gone."""
    query = {"timestamps": "true", "sinceTime": seen.since}
    try:
        body = kube.text(log_path(namespace, pod), query=query, what=f"log of pod {pod}", deadline_s=ANSWER_S)
    except StagecoachError:
        return []
    lines = (seen.new(line) for line in body.encode("utf-8", "replace").split(b"\n") if line)
    return [line for line in lines if line is not None]
