"""What `helm install` says at its end. Helm shows notes only with a cluster, so they are rendered as a value of an object."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).parents[3] / "helm/stagecoach"
CARRIER = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {said: {{ include "notes" . | toJson }}}\n'

pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm on the PATH")


def notes(folder: Path, *settings: str) -> str:
    """Of a release `toy` in namespace `ns`."""
    chart = shutil.copytree(CHART, folder / "stagecoach")
    text = (chart / "templates/NOTES.txt").read_text()
    (chart / "templates/carrier.yaml").write_text(f'{{{{- define "notes" }}}}{text}{{{{ end }}}}\n{CARRIER}')
    command = ["helm", "template", "toy", chart, "-n", "ns", "--kube-version", "1.34.0", "-s", "templates/carrier.yaml"]
    for setting in ("site.root=s3://b/p", *settings):
        command += ["--set", setting]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    said: str = yaml.safe_load(done.stdout)["data"]["said"]
    return said


def test_they_say_what_to_do_next_and_what_is_only_for_trying(tmp_path: Path) -> None:
    said = notes(tmp_path)
    for command in (
        "helm test toy -n ns",
        "kubectl exec -n ns deploy/toy-stagecoach-worker -- stagecoach doctor",
        "kubectl port-forward -n ns svc/toy-stagecoach-server 4200:4200",
        "kubectl get secret -n ns toy-stagecoach-prefect-auth -o jsonpath='{.data.auth-string}' | base64 -d",
        """prefect deployment run mm1_5_pipeline/stagecoach --params '{"parameters": {"recipe": "mm1_5_tiny", "data": "s3://b/p/corpus"}}'""",
        "stagecoach data make s3://b/p/corpus --profile tiny",
    ):
        assert command in said
    assert "jobs run in ns, runs are kept under s3://b/p" in said
    assert "Prefect's database goes with its pod" in said
    assert "No queue is named" in said
    assert "tensorboard" not in said


def test_they_say_nothing_of_what_is_not_there(tmp_path: Path) -> None:
    outside = ("prefect.server.enabled=false", "prefect.externalUrl=https://p.example.com/api", "prefect.server.auth.enabled=false")
    said = notes(tmp_path, *outside, "queues.enabled=true", "tensorboard.enabled=true", "namespaces={a,b}")
    assert not [line for line in said.splitlines() if "-server" in line or "password" in line]
    assert "Prefect's database" not in said
    assert "No queue is named" not in said
    assert "jobs run in a, b" in said
    assert "kubectl port-forward -n ns deploy/toy-stagecoach-tensorboard 6006:6006" in said


def test_they_warn_of_a_server_without_a_password_and_of_a_bucket_that_a_policy_cannot_name(tmp_path: Path) -> None:
    said = notes(tmp_path, "prefect.server.auth.enabled=false", "bucket.endpoint=http://minio:9000")
    assert "It asks for no password" in said
    assert "bucket.endpoint is a name, and network policies know addresses only" in said
