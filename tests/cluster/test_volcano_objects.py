"""The `kubernetes` launcher against a real API server that has Volcano's types. Nothing schedules them here: objects, names and orders are
the point."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import LaunchSpec, NameTaken, SecretRef
from stagecoach.errors import ConfigError
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import connect
from stagecoach.launch.kube.errors import NoSuchKind
from stagecoach.launch.volcano.launcher import VolcanoLauncher
from stagecoach.testing.cluster_world import ClusterWorld

QUEUE = "stagecoach-test"


class VolcanoWorld(ClusterWorld):
    """The namespace of a ClusterWorld, and a Volcano queue."""

    def volcano(self) -> VolcanoLauncher:
        return VolcanoLauncher(connect(), self.site())

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec:
        return replace(super().spec(run_id), queue=QUEUE, **changes)  # type: ignore[arg-type]


@pytest.fixture
def volcano(fake_nodes: int) -> Iterator[VolcanoWorld]:
    there = VolcanoWorld()
    queue = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": QUEUE}, "spec": {"weight": 1}}
    path = paths.of(paths.VOLCANO_SCHEDULING, "queues", None, QUEUE)
    try:
        there.kube.apply(path, queue, manager="tests", what="apply a queue")
    except NoSuchKind:
        there.close()
        pytest.skip("needs Volcano's types: cluster up --volcano-crds")
    yield there
    there.close()


def test_the_job_is_taken_found_listed_and_refused_under_another_spec(volcano: VolcanoWorld) -> None:
    spec = volcano.spec(secrets=(SecretRef(variable="KEY", secret="store", key="key"),), excluded_nodes=("fake-0",))
    handle = volcano.volcano().submit(spec)
    assert volcano.volcano().submit(spec) == handle
    assert volcano.volcano().attach(spec.name) == handle
    assert volcano.volcano().list(run_id="toy") == [handle]
    assert volcano.volcano().list(run_id="other") == []
    with pytest.raises(NameTaken, match="ranks_per_node: there 1, asked 7"):
        volcano.volcano().submit(replace(spec, ranks_per_node=7))
    state = volcano.volcano().describe(handle)
    assert state.phase == Phase.QUEUED
    assert "does its scheduler run?" in state.reason
    volcano.volcano().delete(handle)
    assert volcano.volcano().attach(spec.name) is None
    assert volcano.volcano().describe(handle).phase == Phase.UNKNOWN


def test_server_side_apply_takes_it_and_a_pod_of_it_is_restricted(volcano: VolcanoWorld) -> None:
    job = volcano.volcano().build(volcano.spec())
    path = paths.of(paths.VOLCANO, "jobs", volcano.namespace, job["metadata"]["name"])
    assert volcano.kube.apply(path, job, manager="tests", what="apply dry", dry_run=True)["spec"]["minAvailable"] == 2
    for task in job["spec"]["tasks"]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": task["name"]}, "spec": task["template"]["spec"]}
        volcano.kube.create(volcano.path("pods"), pod, what="create a pod", dry_run=True)


def test_orders_are_commands_and_may_be_repeated(volcano: VolcanoWorld) -> None:
    handle = volcano.volcano().submit(volcano.spec())
    for _ in range(2):
        volcano.volcano().pause(handle, because="lunch")
    volcano.volcano().unpause(handle)
    for _ in range(2):
        volcano.volcano().cancel(handle)
    commands = volcano.kube.list(paths.of(paths.VOLCANO_BUS, "commands", volcano.namespace), what="list commands")["items"]
    assert sorted(command["action"] for command in commands) == ["AbortJob", "ResumeJob"]
    assert {command["target"]["name"] for command in commands} == {handle.name}
    with pytest.raises(ConfigError, match="cancelled, which is for good"):
        volcano.volcano().unpause(handle)


def test_16_callers_at_once_make_one_job(volcano: VolcanoWorld) -> None:
    spec = volcano.spec()
    launchers = [volcano.volcano() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert len({handle.uid for handle in pool.map(lambda launcher: launcher.submit(spec), launchers)}) == 1


def test_a_queue_that_does_not_exist_is_refused(volcano: VolcanoWorld) -> None:
    with pytest.raises(ConfigError, match="no such Volcano queue"):
        volcano.volcano().submit(replace(volcano.spec(), queue="nobody"))
