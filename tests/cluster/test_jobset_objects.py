"""The real API server takes what we make: by server-side apply, dry and real, in a namespace that enforces Pod Security `restricted`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stagecoach.contract.launch import SecretRef, Topology
from stagecoach.errors import ConfigError
from stagecoach.launch.jobset.scheduler import JobsetScheduler
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.errors import UnknownField
from stagecoach.testing.cluster_world import ClusterWorld

TORCHX = Path(sys.executable).parent / "torchx"
EVERYTHING = (
    "priority_class=stagecoach-test-high,service_account=default,image_pull_policy=Never,topology=preferred:stagecoach.dev/rack,"
    "max_execution_time=600,grace=60,retries=3,run_as_user=2000,shm_gb=0.5,node_selector=type:kwok,"
    "tolerations=kwok.x-k8s.io/node:fake:NoSchedule;spot:NoSchedule,volumes=data:/data:ro,secrets=KEY:store/key,devices=rdma/hca:1"
)


def rendered(world: ClusterWorld, cfg: str) -> dict[str, object]:
    command = [
        str(TORCHX),
        "run",
        "--dryrun",
        "--workspace",
        "",
        "-s",
        "jobset",
        "-cfg",
        f"queue=research,namespace={world.namespace},{cfg}",
    ]
    done = subprocess.run(
        [*command, "dist.ddp", "-j", "2x4", "--script", "train.py"], capture_output=True, text=True, check=True, timeout=120, cwd="/"
    )
    jobset: dict[str, object] = yaml.safe_load(done.stdout.split("=== SCHEDULER REQUEST ===")[1])
    return jobset


@pytest.mark.parametrize("cfg", ["retries=0", EVERYTHING], ids=["least", "everything"])
def test_what_a_plain_torchx_dry_run_prints_is_taken_by_server_side_apply(world: ClusterWorld, cfg: str) -> None:
    jobset = rendered(world, cfg)
    path = world.jobset_path(jobset["metadata"]["name"])  # type: ignore[index]
    dry = world.kube.apply(path, jobset, manager="tests", what="apply dry", dry_run=True)
    made = world.kube.apply(path, jobset, manager="tests", what="apply")
    assert dry["spec"] == made["spec"]
    checked = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "as-a-pod"}, **_pod_of(jobset)}
    taken = world.kube.create(world.path("pods"), checked, what="create a pod", dry_run=True)
    assert taken["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def _pod_of(jobset: dict[str, object]) -> dict[str, object]:
    """The gang's pod as one of its own: the namespace's Pod Security looks at pods."""
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]  # type: ignore[index]
    return {"spec": template["spec"]}


def test_a_plain_torchx_app_is_submitted_described_listed_and_cancelled(world: ClusterWorld) -> None:
    from torchx.components.dist import ddp
    from torchx.specs import AppState

    scheduler = JobsetScheduler("tests", kube=world.kube)
    cfg = {
        "queue": "research",
        "namespace": world.namespace,
        "tolerations": ["kwok.x-k8s.io/node:fake:NoSchedule"],
        "node_selector": {"type": "kwok"},
    }
    app_id = scheduler.submit(ddp(script="train.py", j="2x1", cpu=1, memMB=256), cfg)
    namespace, _, name = app_id.partition(":")
    assert namespace == world.namespace
    world.wait_running_name(name)
    described = scheduler.describe(app_id)
    assert described is not None
    assert described.state == AppState.RUNNING
    assert [status.id for status in described.roles_statuses[0].replicas] == [0, 1]
    scheduler.cancel(app_id)
    world.wait(lambda: scheduler.describe(app_id).state == AppState.CANCELLED, "the app to be cancelled")
    assert scheduler.describe(f"{namespace}:no-such-app") is None


@pytest.fixture
def racks(fake_nodes: int) -> Iterator[ClusterWorld]:
    """A queue over nodes whose racks Kueue knows."""
    there = ClusterWorld(topology=True)
    yield there
    there.close()


def test_a_launch_spec_with_everything_is_taken_and_runs_where_it_says(racks: ClusterWorld) -> None:
    world = racks
    spec = world.spec(
        secrets=(SecretRef(variable="KEY", secret="store", key="key"),),
        topology=Topology(mode="required", level="stagecoach.dev/rack"),
        excluded_nodes=("fake-0",),
        max_seconds=60,
    )
    launcher = world.launcher()
    handle = launcher.submit(spec)
    jobset = world.jobset(handle)
    assert jobset["metadata"]["annotations"]["stagecoach.dev/spec-digest"] == spec.digest
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/max-exec-time-seconds"] == "362"
    world.wait_running(handle)
    assert "fake-0" not in {pod["spec"]["nodeName"] for pod in world.pods(handle)}
    stored = yaml.safe_load(launcher.dry_run(spec))
    world.kube.apply(world.jobset_path(handle.name), stored, manager="tests", what="apply the same again", dry_run=True)


def test_a_namespace_that_does_not_exist_is_named(world: ClusterWorld) -> None:
    scheduler = JobsetScheduler("tests", kube=world.kube)
    from torchx.components.dist import ddp

    with pytest.raises(ConfigError, match="kubectl create namespace no-such-place"):
        scheduler.submit(ddp(script="train.py", j="1x1"), {"namespace": "no-such-place"})
    assert world.kube.list(paths.of(paths.JOBSETS, "jobsets", world.namespace), what="list")["items"] == []


def test_a_field_that_the_installed_jobset_does_not_know_is_refused_and_nothing_is_made(world: ClusterWorld) -> None:
    launcher = world.launcher()
    wanted = launcher.build(world.spec())
    wanted["spec"]["failurePolicy"]["rules"][0]["onJobFailureMoods"] = ["grim"]
    with pytest.raises(UnknownField, match="does not know .*onJobFailureMoods; install a newer release"):
        launcher.store.create_or_attach(wanted)
    assert launcher.list() == []
