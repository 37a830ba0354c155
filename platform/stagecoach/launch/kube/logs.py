"""Log lines of a job in a cluster: ranks' from the bucket's segments, supervisors' from pods as long as they are there.

Pods' logs are kept in files of a temporary folder while somebody reads them, and read as the local launcher reads its supervisors' own. A
kubelet that does not answer (its node is lost) is no error: what it had is in the bucket.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stagecoach.contract.launch import LogLine
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ClusterUnavailable, StagecoachError
from stagecoach.explain.logs import LogReader
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.podstate import PodView, read_pod
from stagecoach.launch.local_logs import SUPERVISOR_RANK
from stagecoach.launch.local_logs import job_lines as lines_of

Obj = dict[str, Any]

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


def pod_lines(kube: Kube, namespace: str, labels: str, *, index: int, since: datetime | None = None, follow: bool = False) -> Iterator[str]:
    """Lines, ends included, of the newest pod with that completion index. With `follow` to the pod's end, over broken connections."""
    found = [pod for pod in pods_of(kube, namespace, labels) if pod.index == index and pod.node]
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
        still = [other for other in pods_of(kube, namespace, labels) if other.name == pod.name]
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
    """New lines since the last look; none where the pod or its kubelet is gone. One try: there will be another look."""
    query = {"timestamps": "true", "sinceTime": seen.since}
    found: list[bytes] = []
    try:
        for line in kube.stream(log_path(namespace, pod), query=query, silence_s=ANSWER_S, what=f"log of pod {pod}"):
            if (text := seen.new(line)) is not None:
                found.append(text)
    except StagecoachError:
        return found
    return found


def job_lines(
    kube: Kube,
    namespace: str,
    labels: str,
    folder: JobFolder,
    *,
    rank: int | None,
    attempt: int | None,
    follow: bool,
    has_ended: Callable[[], bool],
) -> Iterator[LogLine]:
    """Until the job has ended, with `follow`; else once. Supervisors' lines of attempts whose pods are gone come from the bucket, first."""
    with tempfile.TemporaryDirectory(prefix="stagecoach-logs-") as place:
        pods = PodFiles(kube, namespace, labels, Path(place))
        pods.look()
        gone = attempts_without_pods(folder, pods.addresses)
        if attempt is None and rank in (None, SUPERVISOR_RANK):
            yield from supervisors_of(folder, gone)

        def more_may_come() -> bool:
            over = not follow or has_ended()  # asked first: what is written after the last look would be lost
            pods.look()
            return not over

        files = pods.files if attempt is None else []
        yield from lines_of(
            folder, files, rank=rank, attempt=attempt, is_growing=more_may_come, is_in_files=lambda number: number not in gone
        )


def attempts_without_pods(folder: JobFolder, addresses: set[str]) -> list[int]:
    """The attempts that no pod at these addresses led."""
    starts = {number: folder.attempt_start(number) for number in folder.attempt_numbers()}
    return [number for number, start in starts.items() if start is None or start.leader_host not in addresses]


def supervisors_of(folder: JobFolder, attempts: list[int]) -> Iterator[LogLine]:
    """What their supervisors shipped."""
    for number in attempts:
        reader = LogReader(folder, rank=SUPERVISOR_RANK, attempt=number)
        yield from reader.new_lines()
        yield from reader.last_lines()


class PodFiles:
    """What pods have said, one file a pod. `look` fetches what is new."""

    def __init__(self, kube: Kube, namespace: str, labels: str, place: Path) -> None:
        self.kube, self.namespace, self.labels, self.place = kube, namespace, labels, place
        self.files: list[Path] = []
        self.addresses: set[str] = set()  # of pods whose log could be read
        self._seen: dict[str, LineFilter] = {}

    def look(self) -> None:
        for pod in pods_of(self.kube, self.namespace, self.labels):
            if pod.node is None or (pod.phase == "Pending" and not pod.started):
                continue
            seen = self._seen.setdefault(pod.name, LineFilter())
            if lines := read_log(self.kube, self.namespace, pod.name, seen):
                path = self.place / pod.name
                with path.open("ab") as file:
                    file.writelines(line + b"\n" for line in lines)
                if path not in self.files:
                    self.files.append(path)
                    self.addresses.add(pod.address or "")
