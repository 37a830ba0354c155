"""The API client against a server that answers what a cluster may: who can act on an error decides its type, and time is waited for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.launch.kube.client import Kube, connect, retry_after
from stagecoach.launch.kube.errors import AlreadyExists, Conflict, Denied, Expired, NoSuchKind, NotFound, Refused, UnknownField, classify
from stagecoach.testing.api_server import ApiServer, status


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (status(401, message="Unauthorized"), Denied, "renew the login"),
        (
            status(403, message='jobsets is forbidden: User "u" cannot create resource "jobsets"'),
            Denied,
            'cannot create resource "jobsets"',
        ),
        (status(403, message="exceeded quota: compute, requested: pods=2"), Refused, "ResourceQuota leaves no room"),
        (status(403, message='pods "x" is forbidden: violates PodSecurity "restricted:latest"'), Refused, "violates PodSecurity"),
        (status(404, "NotFound", 'jobsets "x" not found', name="x", kind="jobsets"), NotFound, "not found"),
        (status(404, "NotFound", 'namespaces "n" not found', name="n", kind="namespaces"), Refused, "kubectl create namespace n"),
        ((404, b"404 page not found\n", {}), NoSuchKind, "install its controller first"),
        (status(409, "AlreadyExists", "exists"), AlreadyExists, "exists"),
        (status(409, "Conflict", "the object has been modified"), Conflict, "modified"),
        (status(410, "Expired", "too old resource version"), Expired, "too old"),
        (status(422, "Invalid", "spec.replicatedJobs: Required value"), Refused, "spec.replicatedJobs: Required value"),
        (
            status(400, "BadRequest", 'strict decoding error: unknown field "spec.failurePolicy.x", unknown field "spec.y"'),
            UnknownField,
            "does not know spec.failurePolicy.x, spec.y; install a newer release of its controller",
        ),
        ((400, b"<html>proxy</html>", {}), Refused, "<html>proxy"),
    ],
)
def test_an_answer_that_no_time_heals_is_told_at_once(server: ApiServer, answer: Any, kind: type[Exception], told: str) -> None:
    server.answers = [answer]
    with pytest.raises(kind) as raised:
        server.kube.get("/apis/x", what="read jobset x")
    assert type(raised.value) is kind
    assert "read jobset x" in str(raised.value)
    assert told in str(raised.value)
    assert len(server.asked) == 1


def test_who_may_not_or_asks_wrongly_is_an_author_and_not_retried() -> None:
    assert issubclass(Denied, ConfigError)
    assert issubclass(Refused, ConfigError)
    assert not issubclass(NotFound, ConfigError)


@pytest.mark.parametrize("trouble", [status(429), status(500), status(503), status(504), "hang up"], ids=str)
def test_time_heals_a_busy_or_absent_server(server: ApiServer, trouble: Any) -> None:
    server.answers = [trouble, trouble, (200, {"kind": "JobSet"}, {})]
    assert server.kube.get("/x", what="read x") == {"kind": "JobSet"}
    assert len(server.asked) == 3
    assert len(server.slept) == 2


def test_the_server_says_how_long_to_wait(server: ApiServer) -> None:
    server.answers = [(429, {}, {"Retry-After": "7"}), (200, {}, {})]
    server.kube.get("/x", what="read x")
    assert server.slept == [7.0]
    assert retry_after({"Retry-After": "soon"}) == 0
    assert retry_after({"Retry-After": "86400"}) == 30


def test_a_deadline_ends_the_tries_with_what_was_wrong(server: ApiServer) -> None:
    server.answers = [status(503, message="etcd is away")]
    with pytest.raises(ClusterUnavailable, match="list pods: the API server answers 503: etcd is away"):
        server.kube.list("/x", what="list pods", deadline_s=0.5)
    assert len(server.asked) >= 1


def test_nobody_there_is_said_with_the_address() -> None:
    kube = Kube("http://127.0.0.1:9", urllib3.PoolManager().request, deadline_s=0.2, sleep=lambda _: None)
    with pytest.raises(ClusterUnavailable, match=r"API server at http://127\.0\.0\.1:9 does not answer"):
        kube.get("/x", what="read x")


def test_f59_a_create_whose_answer_was_lost_says_that_it_exists(server: ApiServer) -> None:
    server.answers = ["hang up", status(409, "AlreadyExists", "jobsets x exists")]
    with pytest.raises(AlreadyExists):
        server.kube.create("/x", {"kind": "JobSet"}, what="create x")
    assert [method for method, _, _ in server.asked] == ["POST", "POST"]


def test_a_long_list_is_read_to_its_end(server: ApiServer) -> None:
    pages = [
        ({"resourceVersion": "7", "continue": "a"}, [1, 2]),
        ({"resourceVersion": "7", "continue": "b"}, [3]),
        ({"resourceVersion": "7"}, [4]),
    ]
    server.answers = [(200, {"metadata": metadata, "items": items}, {}) for metadata, items in pages]
    found = server.kube.list("/pods", labels="a=b", what="list pods")
    assert found["items"] == [1, 2, 3, 4]
    assert [path for _, path, _ in server.asked][1:] == [
        "/pods?limit=500&labelSelector=a%3Db&continue=a",
        "/pods?limit=500&labelSelector=a%3Db&continue=b",
    ]


def test_a_delete_names_the_very_object(server: ApiServer) -> None:
    server.answers = [(200, {}, {})]
    server.kube.delete("/x", uid="u-1", what="delete x")
    ((_, _, body),) = server.asked
    assert body is not None
    assert (body["preconditions"], body["propagationPolicy"]) == ({"uid": "u-1"}, "Foreground")


def test_a_stream_gives_whole_lines_and_says_what_was_refused(server: ApiServer) -> None:
    server.answers = [(200, b'{"a": 1}\n{"b": 2}\nrest', {})]
    assert list(server.kube.stream("/x", query={"watch": "1"}, silence_s=5, what="watch x")) == [b'{"a": 1}', b'{"b": 2}', b"rest"]
    server.answers = [status(410, "Expired", "too old")]
    with pytest.raises(Expired):
        list(server.kube.stream("/x", query={}, silence_s=5, what="watch x"))
    server.answers = ["hang up"]
    with pytest.raises(ClusterUnavailable, match="watch x"):
        list(server.kube.stream("/x", query={}, silence_s=5, what="watch x"))


def test_every_status_has_an_error() -> None:
    for code in range(300, 600):
        assert str(classify(code, "", what="ask"))


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://10.0.0.1:6443/"}}]
users: [{name: u, user: {token: secret-token}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: research}}]
current-context: x
"""


def test_a_kubeconfig_gives_address_namespace_and_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    kube = connect(deadline_s=3)
    assert (kube.host, kube.namespace, kube.deadline_s) == ("http://10.0.0.1:6443", "research", 3)
    assert {name.lower(): value for name, value in kube._authorize().items()} == {"authorization": "Bearer secret-token"}


@pytest.mark.parametrize("inside", [False, True], ids=["a laptop", "a pod without a token"])
def test_b18_without_a_login_it_is_said_what_to_do(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if inside:
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    else:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="no cluster can be reached.*KUBECONFIG"):
        connect()
