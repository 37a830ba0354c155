"""Log lines of a job in a cluster: ranks' from the bucket's segments, supervisors' from pods as long as they are there.

Pods' logs are kept in files of a temporary folder while somebody reads them, and read as the local launcher reads its supervisors' own.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagecoach.contract.launch import LogLine
from stagecoach.contract.ledger import JobFolder
from stagecoach.explain.logs import LogReader
from stagecoach.launch.jobset.phases import job_state
from stagecoach.launch.jobset.reader import JOBSET_NAME, JobsetApi
from stagecoach.launch.kube.logs import LineFilter, pods_of, read_log
from stagecoach.launch.local_logs import SUPERVISOR_RANK
from stagecoach.launch.local_logs import job_lines as lines_of

Obj = dict[str, Any]


def job_lines(api: JobsetApi, jobset: Obj, folder: JobFolder, *, rank: int | None, attempt: int | None, follow: bool) -> Iterator[LogLine]:
    """Until the job has ended, with `follow`; else once. Supervisors' lines of attempts whose pods are gone come from the bucket, first."""
    with tempfile.TemporaryDirectory(prefix="stagecoach-logs-") as place:
        pods = PodFiles(api, jobset["metadata"]["name"], Path(place))
        pods.look()
        if attempt is None and rank in (None, SUPERVISOR_RANK):
            yield from supervisors_before(folder, pods.addresses)
        files = pods.files if attempt is None else []
        yield from lines_of(folder, files, rank=rank, attempt=attempt, is_growing=lambda: pods.look() and follow)


def supervisors_before(folder: JobFolder, addresses: set[str]) -> Iterator[LogLine]:
    """Supervisors' lines of the attempts that no pod at these addresses led."""
    for number in folder.attempt_numbers():
        start = folder.attempt_start(number)
        if start is None or start.leader_host not in addresses:
            reader = LogReader(folder, rank=SUPERVISOR_RANK, attempt=number)
            yield from reader.new_lines()
            yield from reader.last_lines()


class PodFiles:
    """What pods have said, one file a pod. `look` fetches what is new."""

    def __init__(self, api: JobsetApi, name: str, place: Path) -> None:
        self.api, self.name, self.place = api, name, place
        self.files: list[Path] = []
        self.addresses: set[str] = set()  # of pods whose log could be read
        self._seen: dict[str, LineFilter] = {}

    def look(self) -> bool:
        """True while more may come."""
        ended = self.has_ended()  # asked first: what is written after the last look would be lost
        for pod in pods_of(self.api.kube, self.api.namespace, f"{JOBSET_NAME}={self.name}"):
            if pod.node is None:
                continue
            seen = self._seen.setdefault(pod.name, LineFilter())
            if lines := read_log(self.api.kube, self.api.namespace, pod.name, seen):
                path = self.place / pod.name
                with path.open("ab") as file:
                    file.writelines(line + b"\n" for line in lines)
                if path not in self.files:
                    self.files.append(path)
                    self.addresses.add(pod.address or "")
        return not ended

    def has_ended(self) -> bool:
        """No pod of it will say more."""
        seen = self.api.see(self.name)
        return seen is None or job_state(seen).phase.is_terminal
