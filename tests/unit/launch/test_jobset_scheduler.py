"""TorchX's doors that need a cluster's answers: `torchx log` once pods are gone, `torchx delete` of versions that have it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchx.specs import AppDef, InvalidRunConfigException, Role

from stagecoach.contract.ledger import SUPERVISOR, JobFolder
from stagecoach.contract.records import to_plain
from stagecoach.launch.jobset.reader import JobsetApi
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


OURS = {"app.kubernetes.io/managed-by": "stagecoach"}
TRAINERS = {"podSelector": {"matchLabels": OURS}, "policyTypes": ["Ingress", "Egress"]}  # what the chart denies them by
TOY = {"name": "toy", "namespace": "ns", "uid": "u"}
MADE: Answer = (201, {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": TOY}, {})


def policies(*specs: dict[str, Any]) -> Answer:
    return 200, {"metadata": {}, "items": [{"metadata": {"name": "p"}, "spec": spec} for spec in specs]}, {}


def submitted(server: ApiServer, *, nodes: int = 2) -> list[tuple[str, str, dict[str, Any] | None]]:
    """What plain `torchx run -s jobset -cfg namespace=ns` writes."""
    scheduler = JobsetScheduler("tests", kube=server.kube)
    app = AppDef(name="toy", roles=[Role(name="node", image="i:1", entrypoint="sleep", num_replicas=nodes)])
    scheduler.schedule(scheduler.submit_dryrun(app, {"namespace": "ns"}))
    return [(method, path, body) for method, path, body in server.asked if method != "GET"]


def test_pods_of_a_plain_gang_reach_each_other_where_the_namespace_denies_ours_everything(server: ApiServer) -> None:
    server.routes = {"/networkpolicies/": (200, {}, {}), "/networkpolicies": policies(TRAINERS), "/jobsets": MADE}
    created, applied = submitted(server)
    jobset, policy = created[2], applied[2]
    assert jobset is not None
    assert policy is not None
    pods = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["labels"]
    assert OURS.items() <= pods.items()  # the chart's policy is about these pods
    own = {"podSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "toy"}}}  # JobSet's own label of all its pods
    assert (applied[0], policy["spec"]["podSelector"]) == ("PATCH", own["podSelector"])
    assert (policy["spec"]["ingress"], policy["spec"]["egress"]) == ([{"from": [own]}], [{"to": [own]}])
    assert policy["metadata"]["ownerReferences"][0]["uid"] == "u"


@pytest.mark.parametrize(
    "there",
    [
        policies(),
        policies({**TRAINERS, "podSelector": {"matchLabels": {"app": "web"}}}),
        policies({**TRAINERS, "policyTypes": ["Ingress"]}),
        status(403, message="networkpolicies is forbidden"),
    ],
    ids=["none", "of others", "of what comes in alone", "may not look"],
)
def test_pods_that_nobody_denies_anything_are_not_cut_off_by_a_policy_of_their_own(server: ApiServer, there: Answer) -> None:
    server.routes = {"/networkpolicies": there, "/jobsets": MADE}
    assert [method for method, _, _ in submitted(server)] == ["POST"]


def test_who_may_not_look_at_policies_believes_the_site_of_that_namespace(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = status(403, message="networkpolicies is forbidden")
    server.routes = {"/networkpolicies/": (200, {}, {}), "/networkpolicies": refused, "/jobsets": MADE}
    monkeypatch.setenv("STAGECOACH_SITE_PODS_APART", "true")
    monkeypatch.setenv("STAGECOACH_SITE_NAMESPACE", "elsewhere")
    assert [method for method, _, _ in submitted(server)] == ["POST"]
    monkeypatch.setenv("STAGECOACH_SITE_NAMESPACE", "ns")
    assert [method for method, _, _ in submitted(server)][1:] == ["POST", "PATCH"]


def test_one_pod_has_nobody_to_reach(server: ApiServer) -> None:
    server.routes = {"/jobsets": MADE}
    assert [method for method, _, _ in submitted(server, nodes=1)] == ["POST"]


def test_a_field_that_the_clusters_jobset_does_not_know_is_an_error_by_its_name(server: ApiServer) -> None:
    field = "spec.failurePolicy.rules[0].onJobFailureMessagePatterns"
    unknown = status(400, "BadRequest", f'JobSet in version "v1alpha2" cannot be handled: strict decoding error: unknown field "{field}"')
    server.routes = {"/jobsets/": GONE, "/jobsets": unknown}
    with pytest.raises(InvalidRunConfigException, match=f"does not know {re.escape(field)}.*doctor"):
        submitted(server, nodes=1)
    assert "fieldValidation=Strict" in server.asked[0][1]


def test_a_job_that_an_older_jobset_took_once_is_attached_to(server: ApiServer) -> None:
    spec = launch_spec(name="toy")
    notes = {"stagecoach.dev/spec-digest": spec.digest, "stagecoach.dev/spec": json.dumps(to_plain(spec))}
    body = {"kind": "JobSet", "metadata": {"name": "toy", "uid": "u", "annotations": notes}}
    server.routes = {"/jobsets/toy": (200, body, {}), "/jobsets": status(400, "BadRequest", 'unknown field "spec.x"')}
    assert JobsetApi(server.kube, "ns").create_or_attach(body)["metadata"]["uid"] == "u"


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
