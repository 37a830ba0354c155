"""Doctor at real places: a folder as bucket, a ledger with saves, an HTTP server in Prefect's stead, a scripted API server."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from stagecoach.cli.doctor import NAMES, doctor_command
from stagecoach.contract.ledger import JobFolder
from stagecoach.doctor.access import APART, NEEDED, VOLCANO, check_access
from stagecoach.doctor.bucket import check_bucket
from stagecoach.doctor.clock import check_clock
from stagecoach.doctor.cluster import check_kueue, check_version
from stagecoach.doctor.examine import CHECKS
from stagecoach.doctor.facts import Fact, Place
from stagecoach.doctor.grace import saves
from stagecoach.doctor.prefect import check_prefect
from stagecoach.doctor.queues import check_queues
from stagecoach.launch.kube.client import Kube
from stagecoach.site import Site


@dataclass
class Answer:
    """Of an API server."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        return json.dumps(self.body).encode()


def kube_of(answers: dict[str, Any], *, date: str = "") -> Kube:
    """A client whose server knows these paths; a callable is asked with the request's body."""

    def request(method: str, url: str, **how: Any) -> Answer:
        path = url.removeprefix("https://api").partition("?")[0]
        if path not in answers:
            return Answer({"kind": "Status", "reason": "NotFound", "message": f"{path} not found", "details": {"name": "x"}}, 404)
        found = answers[path]
        return Answer(found(json.loads(how["body"])) if callable(found) else found, headers={"Date": date})

    return Kube("https://api", request)


def place(tmp_path: Path, **site: Any) -> Place:
    return Place(Site(**site), f"file://{tmp_path}", None)


def by_verdict(facts: Iterator[Fact]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for fact in facts:
        found.setdefault(fact.verdict, []).append(fact.fact)
        assert fact.do or fact.verdict == "ok", f"{fact.fact}: nothing is said to do"
    return found


def test_a_bucket_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    assert list(by_verdict(check_bucket(place(tmp_path)))) == ["ok"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_is_no_bucket_for_pods(tmp_path: Path) -> None:
    assert "runs jobs in pods" in by_verdict(check_bucket(place(tmp_path, launcher="jobset")))["bad"][0]


def test_a_bucket_that_cannot_be_written_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "bad" in by_verdict(check_bucket(Place(Site(), f"file://{tmp_path}/file", None)))


def test_a_save_is_measured_from_being_asked_to_the_commit(tmp_path: Path) -> None:
    folder = JobFolder.open(f"file://{tmp_path}/job")
    (tmp_path / "job/attempts/1").mkdir(parents=True)
    events = [
        {"t": 100.0, "step": 10, "name": "phase", "value": "staging"},
        {"t": 103.5, "step": 10, "name": "checkpoint_committed", "value": 10},
        {"t": 200.0, "step": 20, "name": "phase", "value": "staging"},  # never committed
        {"t": 201.0, "step": 15, "name": "checkpoint_committed", "value": 15},  # whose beginning is not told
    ]
    body = "".join(json.dumps(event) + "\n" for event in events).encode()
    folder.write_segment("events", 1, "rank-0", 0, body)
    folder.store.publish("attempts/1/start.json", b"{}")
    assert list(saves(folder)) == [3.5]


def test_rights_that_are_missing_are_named_as_kubectl_names_them(tmp_path: Path) -> None:
    def review(body: dict[str, Any]) -> dict[str, Any]:
        asked = body["spec"]["resourceAttributes"]
        return {"status": {"allowed": (asked["resource"], asked["verb"]) not in (("jobsets", "create"), ("workloads", "patch"))}}

    kube = kube_of({"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": review})
    (said,) = by_verdict(check_access(place(tmp_path, namespace="training"), kube))["bad"]
    assert said == "in namespace training this account may not: create jobsets.jobset.x-k8s.io; patch workloads.kueue.x-k8s.io"


def test_an_account_in_a_pod_that_may_too_much_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    kube = kube_of({"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": lambda _: {"status": {"allowed": True}}})
    found = by_verdict(check_access(place(tmp_path), kube))
    assert len(found["ok"]) == 1
    assert any("get secrets" in fact for fact in found["warning"])


def test_versions_that_are_too_old_or_absent_are_told(tmp_path: Path) -> None:
    kube = kube_of(
        {
            "/version": {"gitVersion": "v1.28.3", "major": "1", "minor": "28+"},
            "/apis/kueue.x-k8s.io": {"versions": [{"version": "v1beta1"}]},
        }
    )
    found = by_verdict(check_version(place(tmp_path, launcher="jobset", queue="q"), kube))
    assert "Kubernetes v1.28.3" in found["bad"][0]
    assert "jobset.x-k8s.io is not installed" in found["bad"][1]
    assert "serves only v1beta1" in found["bad"][2]


@pytest.mark.parametrize(
    ("launcher", "rules", "verdict"),
    [
        ("jobset", {"name": {}, "onJobFailureReasons": {}, "onJobFailureMessagePatterns": {}}, "ok"),
        ("jobset", {"name": {}, "onJobFailureReasons": {}}, "bad"),
        ("local", {"name": {}, "onJobFailureReasons": {}}, "warning"),
        ("jobset", {}, "bad"),  # before 0.6 there were no rules
        ("jobset", None, "unknown"),
    ],
)
def test_a_jobset_that_would_drop_our_failure_rules_is_told_before_a_job_is_lost_by_it(
    tmp_path: Path, launcher: str, rules: dict[str, Any] | None, verdict: str
) -> None:
    def inside(path: str, schema: dict[str, Any]) -> dict[str, Any]:
        for part in reversed(path.split(".")):
            schema = {"properties": {part: schema}}
        return schema

    policy = inside("spec.failurePolicy.rules", {"items": {"properties": rules}})
    known = {} if rules is None else {"io.x-k8s.jobset.v1alpha2.JobSet": policy}
    answers = {
        "/version": {"gitVersion": "v1.33.1", "major": "1", "minor": "33"},
        "/apis/jobset.x-k8s.io": {"versions": [{"version": "v1alpha2"}]},
        "/openapi/v3/apis/jobset.x-k8s.io/v1alpha2": {"components": {"schemas": {"io.x-k8s.jobset.v1alpha2.JobSetList": {}, **known}}},
    }
    told = list(check_version(place(tmp_path, launcher=launcher), kube_of(answers)))
    (found,) = [fact for fact in told if "spec.failurePolicy.rules[].onJobFailureMessagePatterns" in fact.fact]
    assert found.verdict == verdict
    assert verdict == "ok" or "JobSet 0.10.1 or newer" in found.do
    del answers["/openapi/v3/apis/jobset.x-k8s.io/v1alpha2"]
    assert "cannot be seen" in str([fact.fact for fact in check_version(place(tmp_path), kube_of(answers)) if fact.verdict == "unknown"])


def test_kueues_settings_are_read_where_they_may_be_and_are_there(tmp_path: Path) -> None:
    path, at = "/api/v1/namespaces/kueue-system/configmaps/kueue-manager-config", place(tmp_path, launcher="jobset", queue="q")

    def told(data: dict[str, str]) -> dict[str, list[str]]:
        return by_verdict(check_kueue(at, kube_of({path: {"data": data}})))

    listed = "integrations:\n  frameworks: [jobset.x-k8s.io/jobset]\n"
    assert told({"controller_manager_config.yaml": listed}) == {"ok": ["Kueue manages JobSets"]}
    assert list(told({"controller_manager_config.yaml": "kind: Configuration\n"})) == ["bad"]
    assert "has no controller_manager_config.yaml" in told({"another.yaml": listed})["unknown"][0]
    assert "not found" in by_verdict(check_kueue(at, kube_of({})))["unknown"][0]


def test_a_queue_that_is_not_there_is_told_with_its_namespace(tmp_path: Path) -> None:
    found = by_verdict(check_queues(place(tmp_path, queue="research", namespace="training"), kube_of({})))
    assert found == {"bad": ["there is no LocalQueue research in namespace training"]}


@pytest.mark.parametrize(
    ("name", "state", "verdict", "fact"),
    [
        ("default", "Open", "ok", "Volcano queue default is open"),
        ("default", "Closing", "bad", "Volcano queue default is closing"),
        ("default", "", "unknown", "Volcano queue default is unknown"),
        ("reserch", "Open", "bad", "there is no Volcano queue reserch"),
        (None, "Open", "bad", "the site names no queue, and Volcano takes no job without one"),
    ],
)
def test_volcanos_queue_is_looked_for_where_that_is_the_launcher(
    tmp_path: Path, name: str | None, state: str, verdict: str, fact: str
) -> None:
    kube = kube_of({"/apis/scheduling.volcano.sh/v1beta1/queues/default": {"status": {"state": state}}})
    assert by_verdict(check_queues(place(tmp_path, launcher="kubernetes", queue=name), kube)) == {verdict: [fact]}


def test_the_clock_is_compared_with_the_servers(tmp_path: Path) -> None:
    now = kube_of({"/version": {}}, date=format_datetime(datetime.now(UTC), usegmt=True))
    assert list(by_verdict(check_clock(place(tmp_path), now))) == ["ok"]
    past = kube_of({"/version": {}}, date="Sat, 01 Jan 2000 00:00:00 GMT")
    assert list(by_verdict(check_clock(place(tmp_path), past))) == ["bad"]


class FakePrefect(BaseHTTPRequestHandler):
    """The answers that doctor asks for, behind a password and a token against forged requests."""

    theirs = version("prefect")
    guarded = True

    def do_GET(self) -> None:
        login = "Basic " + base64.b64encode(b"admin:secret").decode()
        answers = {"/api/admin/version": self.theirs, "/api/work_pools/stagecoach": {"status": "READY"}, "/api/deployments/count": 11}
        path, _, query = self.path.partition("?")
        if self.guarded:
            answers["/api/csrf-token"] = {"token": query.removeprefix("client=")[::-1]}
        status = 401 if self.headers["Authorization"] != login else 200 if path in answers else 404
        if status == 200 and self.command == "POST" and self.guarded:
            status = 200 if self.headers["Prefect-Csrf-Token"] == (self.headers["Prefect-Csrf-Client"] or "none")[::-1] else 403
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(path)).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def prefect_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakePrefect)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_prefect_server_is_asked_with_the_password(prefect_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = place(tmp_path, prefect_api_url=prefect_url)
    assert "does not let us in (401)" in by_verdict(check_prefect(at))["bad"][0]
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
    assert len(by_verdict(check_prefect(at))["ok"]) == 2
    monkeypatch.setattr(FakePrefect, "guarded", False)
    assert len(by_verdict(check_prefect(at))["ok"]) == 2
    monkeypatch.setattr(FakePrefect, "theirs", "2.0.0")
    assert "the server is Prefect 2.0.0" in by_verdict(check_prefect(at))["bad"][0]
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_x")
    assert "the key wins" in by_verdict(check_prefect(at))["bad"][0]


def test_a_prefect_server_that_is_away_is_told(tmp_path: Path) -> None:
    at = place(tmp_path, prefect_api_url="http://127.0.0.1:9/api")
    assert "does not answer" in by_verdict(check_prefect(at))["bad"][0]


def test_the_command_names_every_check_and_ends_with_0_or_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(NAMES) == sorted(CHECKS)
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "STAGECOACH_SITE", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    assert doctor_command.main(["--root", f"file://{tmp_path}", "--json"], standalone_mode=False) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fit"]
    assert {fact["check"] for fact in told["facts"]} == {"cluster", "bucket", "grace", "prefect"}
    (tmp_path / "file").write_text("")
    assert doctor_command.main(["--root", f"file://{tmp_path}/file", "--only", "bucket"], standalone_mode=False) == 1
    assert "not fit: 1 to mend" in capsys.readouterr().out


def test_needed_rights_are_those_of_the_charts_role() -> None:
    import yaml

    for name, needed in (("worker-rules", NEEDED), ("volcano-rules", VOLCANO), ("apart-rules", APART)):
        rules = yaml.safe_load((Path(__file__).parents[3] / f"helm/stagecoach/files/{name}.yaml").read_text())
        granted = {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert granted == set(needed), name
