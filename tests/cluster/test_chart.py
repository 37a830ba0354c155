"""The chart and the manifests before a real API server and a real Kueue: accepted, least privilege, nothing left behind."""

import base64
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/stagecoach"
OVERLAYS = ("kind", "gpu-h100", "gpu-h200", "spot")
PATIENCE_S = 60.0
EVERY_ACCOUNT = {"selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"}  # system:basic-user


def run(*command: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, f"{what}: not within {PATIENCE_S:.0f} s"
        time.sleep(0.2)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """(of the release, of jobs), both under Pod Security `restricted`."""
    end = uuid.uuid4().hex[:8]
    names = (f"stagecoach-{end}", f"training-{end}")
    for name in names:
        run("kubectl", "create", "namespace", name)
        run(
            "kubectl",
            "label",
            "namespace",
            name,
            "pod-security.kubernetes.io/enforce=restricted",
            "pod-security.kubernetes.io/warn=restricted",
        )
    yield names
    run("kubectl", "delete", "namespace", *names, "--wait=false")


def settings(jobs: str, *more: str) -> list[str]:
    """Flavor and priorities are cluster-wide, so each test has its own; null takes a default away."""
    queue = f"q-{jobs}"
    flavors = [{"name": queue, "quota": {"cpu": "2", "memory": "4Gi"}}]
    priorities = {f"low-{jobs}": 1, f"high-{jobs}": 2, **dict.fromkeys(("stagecoach-low", "stagecoach-default", "stagecoach-high"))}
    plain = {"site.root": "s3://bucket/root", "namespaces": f"{{{jobs}}}", "queues.enabled": "true", "queues.name": queue}
    given = [part for name, value in plain.items() for part in ("--set", f"{name}={value}")]
    for name, value in {"flavors": flavors, "priorityClasses": priorities}.items():
        given += ["--set-json", f"queues.{name}={json.dumps(value)}"]
    return [*given, *more]


def rights(account: str, namespace: str) -> dict[str, set[str]]:
    """resource.group -> verbs, as `kubectl auth can-i --list` has it, without what every account may."""
    text = run("kubectl", "auth", "can-i", "--list", "--no-headers", "--as", f"system:serviceaccount:{account}", "-n", namespace)
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        resource, _, verbs = line.partition(" ")
        if resource and resource.partition(".")[0] not in EVERY_ACCOUNT and not resource.startswith("["):
            found.setdefault(resource, set()).update(verbs[verbs.rindex("[") + 1 : verbs.rindex("]")].split())
    return found


def granted(rules: str) -> dict[str, set[str]]:
    """The same of a file of rules."""
    found: dict[str, set[str]] = {}
    for rule in yaml.safe_load((CHART / "files" / rules).read_text()):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                plural, slash, sub = resource.partition("/")
                name = f"{plural}.{group}{slash}{sub}" if group else resource
                found.setdefault(name, set()).update(rule["verbs"])
    return found


def test_a_release_is_accepted_keeps_its_password_and_leaves_nothing(namespaces: tuple[str, str]) -> None:
    home, jobs = namespaces
    given = settings(jobs, "--set", "tensorboard.enabled=true", "--set", "monitoring.dashboard=true", "--set", "rbac.clusterReader=true")
    said = run("helm", "install", "stagecoach", str(CHART), "-n", home, "--no-hooks", *given)
    assert "would violate PodSecurity" not in said, said
    assert f"jobs run in {jobs}" in said

    def password() -> str:
        return run("kubectl", "get", "secret", "stagecoach-prefect-auth", "-n", home, "-o", "jsonpath={.data.auth-string}")

    first = password()
    assert len(first) > 40
    spoken = run("kubectl", "get", "secret", "stagecoach-prefect-auth", "-n", home, "-o", "jsonpath={.data.basic-credentials}")
    assert base64.b64decode(base64.b64decode(spoken)) == base64.b64decode(first)
    run("helm", "upgrade", "stagecoach", str(CHART), "-n", home, "--no-hooks", *given, "--set", "worker.replicas=2")
    assert password() == first
    assert rights(f"{jobs}:stagecoach-trainer", jobs) == {}
    worker = {**granted("worker-rules.yaml"), **granted("apart-rules.yaml")}
    for resource, verbs in granted("reader-rules.yaml").items():
        worker.setdefault(resource, set()).update(verbs)
    assert rights(f"{home}:stagecoach-worker", jobs) == worker
    assert rights(f"{home}:stagecoach-server", home) == {}
    run("helm", "uninstall", "stagecoach", "-n", home, "--no-hooks", "--wait")
    kinds = "all,configmap,secret,serviceaccount,role,rolebinding,networkpolicy,pvc,localqueue,ingress"
    wide = "clusterqueue,resourceflavor,workloadpriorityclass,clusterrole,clusterrolebinding"

    def left() -> list[str]:
        inside = [line for name in namespaces for line in run("kubectl", "get", kinds, "-n", name, "-o", "name").splitlines()]
        outside = [line for line in run("kubectl", "get", wide, "-o", "name").splitlines() if jobs in line or "stagecoach-worker" in line]
        own = ("configmap/kube-root-ca.crt", "serviceaccount/default")  # a namespace's own
        return [line for line in inside + outside if "/" in line and line not in own]

    wait_for("everything of the release is gone", lambda: not left())


def jobset(namespace: str, queue: str) -> str:
    """A job as a launcher makes them, as far as an upgrade could touch it. No node is needed."""
    pod = {
        "restartPolicy": "Never",
        "containers": [{"name": "c", "image": "none", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
    }
    job = {"completions": 1, "parallelism": 1, "completionMode": "Indexed", "backoffLimit": 0, "template": {"spec": pod}}
    labels = {"kueue.x-k8s.io/queue-name": queue, "app.kubernetes.io/managed-by": "stagecoach"}
    return json.dumps(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": "run", "namespace": namespace, "labels": labels},
            "spec": {"suspend": True, "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}]},
        }
    )


def test_an_upgrade_and_a_rollback_leave_a_run_alone(namespaces: tuple[str, str]) -> None:
    home, jobs = namespaces
    given = settings(jobs)
    run("kubectl", "label", "namespace", jobs, "pod-security.kubernetes.io/enforce-")  # the job here is made by hand
    run("helm", "install", "stagecoach", str(CHART), "-n", home, "--no-hooks", *given)
    wait_for("the LocalQueue is active", lambda: is_active("localqueue", f"q-{jobs}", jobs))
    run("kubectl", "apply", "-f", "-", stdin=jobset(jobs, f"q-{jobs}"))

    def seen() -> dict[str, Any]:
        whole: dict[str, Any] = json.loads(run("kubectl", "get", "jobset", "run", "-n", jobs, "-o", "json"))
        return {"uid": whole["metadata"]["uid"], "spec": whole["spec"], "restarts": whole.get("status", {}).get("restarts", 0)}

    wait_for("Kueue lets the job go", lambda: seen()["spec"]["suspend"] is False)
    before = seen()
    run(
        "helm",
        "upgrade",
        "stagecoach",
        str(CHART),
        "-n",
        home,
        "--no-hooks",
        *given,
        "--set",
        "images.training.tag=0.2.0",
        "--set",
        "site.graceSeconds=60",
    )
    assert seen() == before
    run("helm", "rollback", "stagecoach", "1", "-n", home, "--no-hooks")
    assert seen() == before
    run("kubectl", "delete", "jobset", "run", "-n", jobs)
    run("helm", "uninstall", "stagecoach", "-n", home, "--no-hooks")


def test_without_the_switch_the_worker_reads_nothing_of_the_cluster(namespaces: tuple[str, str]) -> None:
    home, jobs = namespaces
    run("helm", "install", "stagecoach", str(CHART), "-n", home, "--no-hooks", *settings(jobs))
    assert rights(f"{home}:stagecoach-worker", jobs) == {**granted("worker-rules.yaml"), **granted("apart-rules.yaml")}
    assert rights(f"{home}:stagecoach-worker", home) == {}
    assert rights(f"{home}:stagecoach-worker", "default") == {}
    run("helm", "uninstall", "stagecoach", "-n", home, "--no-hooks")


def test_hooks_and_tests_are_admitted_too(namespaces: tuple[str, str]) -> None:
    home, jobs = namespaces
    given = settings(jobs)
    run("helm", "install", "stagecoach", str(CHART), "-n", home, "--no-hooks", *given)
    everything = run("helm", "template", "stagecoach", str(CHART), "-n", home, "--kube-version", "1.34.0", *given)
    hooks = [one for one in yaml.safe_load_all(everything) if one and "helm.sh/hook" in one["metadata"].get("annotations", {})]
    assert sorted(one["kind"] for one in hooks) == ["Job", "Pod", "Pod", "Pod", "Pod"]
    said = run("kubectl", "apply", "--server-side", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(hooks))
    assert "Warning" not in said, said
    run("helm", "uninstall", "stagecoach", "-n", home, "--no-hooks")


def test_kueue_takes_the_charts_queues(namespaces: tuple[str, str]) -> None:
    home, jobs = namespaces
    run("helm", "install", "stagecoach", str(CHART), "-n", home, "--no-hooks", *settings(jobs))
    wait_for("the LocalQueue is active", lambda: is_active("localqueue", f"q-{jobs}", jobs))
    run("helm", "uninstall", "stagecoach", "-n", home, "--no-hooks")


def is_active(kind: str, name: str, namespace: str = "default") -> bool:
    shown: dict[str, Any] = json.loads(run("kubectl", "get", kind, name, "-n", namespace, "-o", "json"))
    return any(one["type"] == "Active" and one["status"] == "True" for one in shown.get("status", {}).get("conditions", ()))


def test_kueue_takes_every_overlay_one_after_the_other() -> None:
    try:
        for overlay in OVERLAYS:
            said = run("kubectl", "apply", "--server-side", "--force-conflicts", "-k", f"manifests/overlays/{overlay}")
            assert "Warning" not in said, said
            wait_for(f"{overlay}: the ClusterQueue is active", lambda: is_active("clusterqueue", "stagecoach"))
            wait_for(f"{overlay}: the LocalQueue is active", lambda: is_active("localqueue", "stagecoach", "training"))
    finally:
        for overlay in OVERLAYS:
            run("kubectl", "delete", "-k", f"manifests/overlays/{overlay}", "--ignore-not-found", "--wait=false", check=False)


def test_the_quick_tests_of_the_chart_run_with_helm_here() -> None:
    """They skip where helm, kubectl or promtool is not on the PATH; here they are."""
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests/unit/chart"], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "needs helm" not in done.stdout
    assert "needs kubectl" not in done.stdout
