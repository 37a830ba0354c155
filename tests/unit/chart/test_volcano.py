"""The chart for a cluster that is standardised on Volcano: what differs from Kueue's."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagecoach.launch.volcano.objects import JOB_LABEL

CHART = Path(__file__).parents[3] / "helm/stagecoach"

pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm on the PATH")


def rendered(*settings: str) -> list[dict[str, Any]]:
    command = ["helm", "template", "toy", CHART, "--kube-version", "1.34.0", "--set", "site.root=s3://b/p,monitoring.podMonitor=true"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def test_alerts_name_volcanos_jobs_by_the_label_that_they_group_by() -> None:
    (endpoint,) = monitor(rendered("site.launcher=kubernetes", "site.queue=default"))["podMetricsEndpoints"]
    (rule,) = endpoint["relabelings"]
    assert rule["sourceLabels"] == ["__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", JOB_LABEL)]  # as Prometheus writes it
    assert f"by (namespace, {rule['targetLabel']})" in (CHART / "files/rules.yaml").read_text()
    assert "relabelings" not in monitor(rendered())["podMetricsEndpoints"][0]


def monitor(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (one for one in documents if one["kind"] == "PodMonitor")
    spec: dict[str, Any] = found["spec"]
    return spec


def test_the_worker_may_make_volcanos_jobs_where_that_is_the_launcher_and_only_there() -> None:
    def groups(documents: list[dict[str, Any]]) -> set[str]:
        return {group for one in documents if one["kind"] == "Role" for rule in one["rules"] for group in rule["apiGroups"]}

    volcano = {"batch.volcano.sh", "bus.volcano.sh", "scheduling.volcano.sh"}
    assert volcano <= groups(rendered("site.launcher=kubernetes", "site.queue=default"))
    assert not volcano & groups(rendered())
