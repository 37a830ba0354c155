"""A launcher lives with the rights that the chart gives the worker's account, and asks for nothing beyond them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagecoach.constants import Phase
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.launch.kube.errors import Denied
from stagecoach.testing.cluster_world import HIGH, ClusterWorld

RULES = Path(__file__).parents[2] / "helm/stagecoach/files"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ACCOUNT = "stagecoach-worker"


class Asker:
    """The worker's account over the admin's connection, with what was refused to it."""

    def __init__(self, world: ClusterWorld) -> None:
        self.refused: list[str] = []
        admin = connect()
        self._real = admin._request
        user = f"system:serviceaccount:{world.namespace}:{ACCOUNT}"
        self.kube = Kube(admin.host, self._request, lambda: {**admin._authorize(), "Impersonate-User": user})

    def _request(self, method: str, url: str, **rest: Any) -> Any:
        answer = self._real(method, url, **rest)
        if answer.status == 403:
            self.refused.append(f"{method} {url.partition('/apis/')[2] or url}")
        return answer


@pytest.fixture
def asker(world: ClusterWorld) -> Asker:
    rules = [rule for name in ("worker-rules", "apart-rules") for rule in yaml.safe_load((RULES / f"{name}.yaml").read_text())]
    version = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": ACCOUNT}}
    inside = f"{RBAC}/namespaces/{world.namespace}"
    world.kube.create(f"{inside}/roles", {**version, "kind": "Role", "rules": rules}, what="create a role")
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": world.namespace}],
    }
    world.kube.create(f"{inside}/rolebindings", {**version, "kind": "RoleBinding", **binding}, what="bind a role")
    return Asker(world)


def test_a_whole_jobs_life_needs_nothing_that_the_worker_may_not(world: ClusterWorld, asker: Asker) -> None:
    launcher = JobsetLauncher(asker.kube, world.site().model_copy(update={"pods_apart": True}))
    handle = launcher.submit(world.spec())
    world.wait_running(handle)
    for _ in range(3):  # from the second look on by watches
        assert not launcher.describe(handle).phase.is_terminal
    launcher.tend(handle)
    launcher.pause(handle)
    world.wait_phase(handle, Phase.PAUSED)
    launcher.unpause(handle)
    world.end_pods(handle, 75)
    assert world.wait_phase(handle, Phase.FAILED).exit_code == 75
    assert launcher.describe(handle).phase == Phase.FAILED
    assert launcher.attach(handle.name) == handle
    assert launcher.list(run_id="toy") == [handle]
    list(launcher.logs(handle))
    launcher.cancel(handle)
    launcher.store.force_away("no-such-pod", "no-such-uid")
    launcher.delete(handle)
    assert launcher.describe(handle).phase == Phase.UNKNOWN
    assert asker.refused == []


def test_a_priority_class_is_looked_up_only_by_who_may_read_the_cluster(world: ClusterWorld, asker: Asker) -> None:
    """`rbac.clusterReader` of the chart; without it Kueue itself refuses what does not exist."""
    launcher = JobsetLauncher(asker.kube, world.site())
    handle = launcher.submit(replace(world.spec(), priority=HIGH))
    world.wait_running(handle)
    assert [line.partition("?")[0] for line in asker.refused] == [f"GET kueue.x-k8s.io/v1beta2/workloadpriorityclasses/{HIGH}"]


def test_the_worker_reads_no_secret_and_makes_no_pod(world: ClusterWorld, asker: Asker) -> None:
    with pytest.raises(Denied, match="secrets"):
        asker.kube.list(world.path("secrets"), what="list secrets")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    with pytest.raises(Denied, match="create"):
        asker.kube.create(world.path("pods"), pod, what="create a pod")
