"""TorchX's doors that need a cluster's answers: `torchx log` once pods are gone, `torchx delete` of versions that have it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.contract.records import to_plain
from stagecoach.launch.jobset.scheduler import JobsetScheduler
from stagecoach.testing.api_server import Answer, ApiServer, status
from stagecoach.testing.builders import attempt_start, launch_spec

GONE = status(404, "NotFound", name="toy")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


def jobset(annotations: dict[str, str] | None = None) -> Answer:
    """With a grace period of its own."""
    pod = {"spec": {"terminationGracePeriodSeconds": 1}}
    replicated = [{"name": "node", "template": {"spec": {"completions": 2, "template": pod}}}]
    return 200, {"metadata": {"name": "toy", "uid": "u", "annotations": annotations or {}}, "spec": {"replicatedJobs": replicated}}, {}


def pods(*indices: int) -> Answer:
    label = "batch.kubernetes.io/job-completion-index"
    items = [
        {"metadata": {"name": f"toy-{index}", "labels": {label: str(index)}}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}
        for index in indices
    ]
    return 200, {"metadata": {}, "items": items}, {}


@pytest.fixture
def shipped(tmp_path: Path) -> Answer:
    """A JobSet of two nodes of two ranks, whose lines of two attempts are in the bucket."""
    folder = JobFolder.open(tmp_path.as_uri())
    for attempt in (1, 2):
        folder.claim_attempt(attempt_start(attempt=attempt))
        folder.write_segment("logs", attempt, f"{SUPERVISOR}-1", 0, f"supervisor, attempt {attempt}\n".encode())
        for rank in range(4):
            folder.write_segment("logs", attempt, f"rank-{rank}", 0, f"step of rank {rank}\n".encode())
    spec = launch_spec(job_uri=folder.uri, nodes=2, ranks_per_node=2)
    return jobset({"stagecoach.dev/spec": json.dumps(to_plain(spec)), "stagecoach.dev/job-uri": folder.uri})


def lines(server: ApiServer, node: int, regex: str | None = None) -> list[str]:
    return list(JobsetScheduler("tests", kube=server.kube).log_iter("ns:toy", "node", node, regex))


def test_a_nodes_lines_come_from_the_bucket_once_its_pod_is_gone(server: ApiServer, shipped: Answer) -> None:
    server.routes = {"/pods?": pods(0), "/pods/toy-0/log": (200, b"2026-11-21T10:00:00Z it is up\n", {}), "/jobsets/toy": shipped}
    assert lines(server, 0) == ["it is up\n"]
    assert lines(server, 1) == [
        line for attempt in (1, 2) for line in (
            f"[{attempt} supervisor-1] supervisor, attempt {attempt}\n",
            f"[{attempt} rank 2] step of rank 2\n",
            f"[{attempt} rank 3] step of rank 3\n",
        )
    ]  # fmt: skip
    assert lines(server, 1, "rank 3") == ["[1 rank 3] step of rank 3\n", "[2 rank 3] step of rank 3\n"]


@pytest.mark.parametrize("there", [jobset(), GONE], ids=["a stranger's", "none"])
def test_an_app_that_has_no_bucket_has_no_lines_but_its_pods(server: ApiServer, there: Answer) -> None:
    server.routes = {"/pods?": pods(), "/jobsets/toy": there}
    assert lines(server, 0) == []


def test_torchx_delete_removes_the_very_object_with_its_pods_and_waits(server: ApiServer) -> None:
    server.answers = [jobset(), (200, {}, {}), jobset(), GONE]
    JobsetScheduler("tests", kube=server.kube)._delete_existing("ns:toy")
    asked = [(method, path.partition("?")[0]) for method, path, _ in server.asked]
    path = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ns/jobsets/toy"
    assert asked == [("GET", path), ("DELETE", path), ("GET", path), ("GET", path)]
    body: dict[str, Any] | None = server.asked[1][2]
    assert body is not None
    assert (body["preconditions"], body["propagationPolicy"]) == ({"uid": "u"}, "Foreground")


def test_torchx_delete_of_what_is_gone_asks_for_nothing_more(server: ApiServer) -> None:
    server.answers = [GONE]
    JobsetScheduler("tests", kube=server.kube)._delete_existing("ns:toy")
    assert [method for method, _, _ in server.asked] == ["GET"]
