"""Pods' lines, once each, over streams that begin anew; supervisors' lines from the bucket where their pods are gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.launch.kube.logs import LineFilter, job_lines, pod_lines
from stagecoach.testing.api_server import ApiServer, status
from stagecoach.testing.builders import attempt_start


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


def listed(*phases: str, address: str = "10.0.0.1") -> tuple[int, object, dict[str, str]]:
    pods = [
        {
            "metadata": {"name": f"toy-{index}", "uid": f"u{index}", "labels": {"batch.kubernetes.io/job-completion-index": str(index)}},
            "spec": {"nodeName": f"n{index}"},
            "status": {"phase": phase, "podIP": address},
        }
        for index, phase in enumerate(phases)
    ]
    return 200, {"metadata": {}, "items": pods}, {}


def test_a_line_is_let_through_once_though_streams_begin_anew_at_the_second() -> None:
    lines = LineFilter()
    first = [b"2026-11-21T10:00:00.1Z a", b"2026-11-21T10:00:00.12Z b", b"2026-11-21T10:00:00.12Z c"]
    assert [lines.new(line) for line in first] == [b"a", b"b", b"c"]
    assert lines.since == "2026-11-21T10:00:00Z"
    again = [*first, b"2026-11-21T10:00:00.12Z d", b"2026-11-21T10:00:01Z b"]
    assert [lines.new(line) for line in again] == [None, None, None, b"d", b"b"]
    assert lines.new(b"no time at all") == b"no time at all"


def test_the_newest_pod_of_a_node_is_read(server: ApiServer) -> None:
    server.answers = [listed("Running", "Running"), (200, b"2026-11-21T10:00:00Z one\n2026-11-21T10:00:01Z two\n", {})]
    assert list(pod_lines(server.kube, "ns", "job=toy", index=1)) == ["one\n", "two\n"]
    assert server.asked[1][1].startswith("/api/v1/namespaces/ns/pods/toy-1/log?timestamps=true")
    server.answers = [listed("Running")]
    assert list(pod_lines(server.kube, "ns", "job=toy", index=7)) == []


def test_a_followed_log_goes_on_over_a_broken_connection_to_the_pods_end(server: ApiServer) -> None:
    server.answers = [
        listed("Running"),
        (200, b"2026-11-21T10:00:00Z one\n", {}),
        listed("Running"),
        "hang up",
        listed("Succeeded"),
        (200, b"2026-11-21T10:00:00Z one\n2026-11-21T10:00:02Z two\n", {}),
    ]
    assert list(pod_lines(server.kube, "ns", "job=toy", index=0, follow=True)) == ["one\n", "two\n"]


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """Two attempts; the pod that led the second is at 10.0.0.1."""
    job = JobFolder.open(tmp_path.as_uri())
    for attempt, host in ((1, "10.0.0.9"), (2, "10.0.0.1")):
        job.claim_attempt(attempt_start(attempt=attempt, leader_host=host))
        job.write_segment("logs", attempt, SUPERVISOR, 0, f"supervisor of attempt {attempt}\n".encode())
        job.write_segment("logs", attempt, "rank-0", 0, f"step of attempt {attempt}\n".encode())
    return job


def lines(server: ApiServer, folder: JobFolder, **asked: int | None) -> list[tuple[int, int, str]]:
    what = {"rank": None, "attempt": None, **asked}
    found = job_lines(server.kube, "ns", "job=toy", folder, follow=False, has_ended=lambda: False, **what)  # type: ignore[arg-type]
    return [(line.attempt, line.rank, line.text) for line in found]


def test_all_attempts_are_told_the_newest_supervisors_from_its_pod(server: ApiServer, folder: JobFolder) -> None:
    pod = (
        200,
        b"2026-11-21T10:00:00Z it is up\n2026-11-21T10:00:01Z [rank 0] step of attempt 2\n2026-11-21T10:00:02Z [rank 0] not shipped\n",
        {},
    )
    server.answers = [listed("Running"), pod, listed("Running"), pod]
    assert lines(server, folder) == [
        (1, -1, "supervisor of attempt 1"),
        (0, -1, "it is up"),
        (1, 0, "step of attempt 1"),
        (2, 0, "step of attempt 2"),
        (2, 0, "not shipped"),
    ]


@pytest.mark.parametrize("gone", [listed(), status(404, "NotFound", name="toy-0")], ids=["no pods", "no answer"])
def test_the_bucket_has_it_all_once_pods_are_gone(server: ApiServer, folder: JobFolder, gone: tuple[int, object, dict[str, str]]) -> None:
    server.answers = [gone] if gone[0] == 200 else [listed("Running"), gone, listed("Running"), gone]
    told = [
        (1, -1, "supervisor of attempt 1"),
        (2, -1, "supervisor of attempt 2"),
        (1, 0, "step of attempt 1"),
        (2, 0, "step of attempt 2"),
    ]
    assert lines(server, folder) == told


def test_one_attempt_or_one_rank_alone(server: ApiServer, folder: JobFolder) -> None:
    server.answers = [listed()]
    assert lines(server, folder, attempt=2) == [(2, -1, "supervisor of attempt 2"), (2, 0, "step of attempt 2")]
    assert lines(server, folder, rank=0) == [(1, 0, "step of attempt 1"), (2, 0, "step of attempt 2")]
