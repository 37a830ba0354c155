"""Doctor at a real cluster with a real bucket: it finds what is wrong, and nothing else."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.cli.doctor import doctor_command

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; from stagecoach.cli.doctor import doctor_command; sys.exit(doctor_command.main(standalone_mode=False))"


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root() -> str:
    import s3fs

    name = f"stagecoach-doctor-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"]).mkdir(name)
    return f"s3://{name}/root"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def queue_of(name: str, quota: dict[str, str]) -> str:
    """Flavor, ClusterQueue and LocalQueue, as objects for `kubectl apply`."""
    resources = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
    api = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
    groups = [{"coveredResources": list(quota), "flavors": [{"name": name, "resources": resources}]}]
    labels = {"stagecoach.dev/doctor": name}  # of no node at all
    objects: list[dict[str, Any]] = [
        {**api, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": {"nodeLabels": labels}},
        {
            **api, "kind": "ClusterQueue", "metadata": {"name": name},
            "spec": {"namespaceSelector": {}, "resourceGroups": groups, "preemption": {"withinClusterQueue": "LowerPriority"}},
        },
        {**api, "kind": "LocalQueue", "metadata": {"name": name, "namespace": name}, "spec": {"clusterQueue": name}},
    ]  # fmt: skip
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def ask(root: str, *arguments: str, **site: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """(exit code, check -> facts)."""
    environment = {**os.environ, **{f"STAGECOACH_SITE_{name.upper()}": value for name, value in site.items()}}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--root", root, "--json", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert told["fit"] == (done.returncode == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for fact in told["facts"]:
        found.setdefault(fact["check"], []).append(fact)
    return done.returncode, found


def worst(facts: list[dict[str, str]]) -> str:
    return max((fact["verdict"] for fact in facts), key=("ok", "unknown", "warning", "bad").index)


def test_what_is_well_is_called_well(root: str, namespace: str) -> None:
    code, found = ask(root, launcher="jobset", namespace=namespace, images__training="stagecoach/training:0.1.0")
    assert code == 0, found
    assert [worst(found[check]) for check in ("cluster", "access", "clock", "bucket", "prefect")] == ["ok"] * 5
    said = " ".join(fact["fact"] for fact in found["cluster"])
    assert "jobset.x-k8s.io serves v1alpha2" in said
    assert "kueue.x-k8s.io serves" in said
    assert "of two conditional creates one won" in found["bucket"][0]["fact"]
    assert "no save was measured" in found["grace"][0]["fact"]


def test_a_quota_that_no_node_can_hold_is_bad(root: str, namespace: str) -> None:
    kubectl("apply", "--server-side", "-f", "-", stdin=queue_of(namespace, {"cpu": "64", "nvidia.com/gpu": "8"}))
    until = time.monotonic() + 60
    site = {"launcher": "jobset", "namespace": namespace, "queue": namespace, "pods__devices": '{"rdma/hca": "1"}'}
    while True:
        code, found = ask(root, "--only", "queues", **site)
        if sum("is active" in fact["fact"] for fact in found["queues"]) == 2:
            break
        assert time.monotonic() < until, found
    bad = [fact for fact in found["queues"] if fact["verdict"] == "bad"]
    assert code == 1
    assert [fact["fact"] for fact in bad] == [
        f"flavor {namespace}: quota of cpu 64, nodes have 0 for jobs",
        f"flavor {namespace}: quota of nvidia.com/gpu 8, nodes have 0 for jobs",
        f"pods.devices of the site asks for rdma/hca, of which ClusterQueue {namespace} has no quota",
    ]
    assert "Kueue admits what no node holds, and preempts nothing" in bad[0]["do"]
    for kind in ("clusterqueue", "resourceflavor"):
        kubectl("delete", kind, namespace, "--wait=false")


def test_an_account_without_rights_is_told_which(root: str, namespace: str, tmp_path: Path) -> None:
    """As an account that may nothing: by its own token, not by an administrator's word."""
    kubectl("create", "serviceaccount", "nobody", "-n", namespace)
    token = kubectl("create", "token", "nobody", "-n", namespace).strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    os.environ["KUBECONFIG"], before = str(tmp_path / "kubeconfig"), os.environ["KUBECONFIG"]
    try:
        code, found = ask(root, "--only", "access", "--only", "images", "--only", "cluster", launcher="jobset", namespace=namespace,
                          images__training="stagecoach/training:0.1.0")  # fmt: skip
    finally:
        os.environ["KUBECONFIG"] = before
    assert code == 1
    assert worst(found["cluster"]) == "ok"
    assert "create jobsets.jobset.x-k8s.io" in found["access"][0]["fact"]
    assert found["images"][0]["verdict"] == "unknown"
    assert "rbac.clusterReader" in found["images"][0]["do"]


def test_a_bucket_that_is_not_there_and_a_queue_that_is_not_there_are_bad(namespace: str) -> None:
    code, found = ask(
        f"s3://missing-{uuid.uuid4().hex[:8]}/root",
        "--only",
        "bucket",
        "--only",
        "queues",
        launcher="jobset",
        namespace=namespace,
        queue="none",
    )
    assert code == 1
    assert worst(found["bucket"]) == "bad"
    assert found["queues"][0]["fact"] == f"there is no LocalQueue none in namespace {namespace}"


def test_an_api_server_that_is_away_is_told_soon_and_the_rest_is_looked_at(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    os.environ["KUBECONFIG"], before = str(tmp_path / "kubeconfig"), os.environ["KUBECONFIG"]
    try:
        assert (
            doctor_command.main(
                ["--root", root, "--launcher", "jobset", "--only", "cluster", "--only", "bucket", "--json"], standalone_mode=False
            )
            == 1
        )
    finally:
        os.environ["KUBECONFIG"] = before
    told = {fact["check"]: fact for fact in json.loads(capsys.readouterr().out)["facts"]}
    assert "does not answer" in told["cluster"]["fact"]
    assert told["bucket"]["verdict"] == "ok"
