"""What nobody else does for a job that waits for ever. The clock is the test's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from loguru import logger

from stagecoach.contract.launch import RunHandle
from stagecoach.errors import ClusterUnavailable
from stagecoach.launch.jobset import reader
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.kube.marks import SPEC
from stagecoach.launch.kube.podstate import PodView, read_pod
from stagecoach.launch.kube.tending import Tending
from stagecoach.site import Site
from stagecoach.testing.api_server import ApiServer

pod = PodView(name="toy-0", uid="p0", node="n0", phase="Running")
pulling = replace(pod, phase="Pending", waiting="ImagePullBackOff", waiting_says="no such image")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_image_that_does_not_come_is_given_up_after_two_minutes_without_a_break() -> None:
    clock = Clock()
    tending = Tending(clock)
    assert tending.hopeless([pod, pulling]) == ""
    clock.now += 100
    assert tending.hopeless([replace(pod, uid="p0")]) == ""  # it came after all
    assert tending.hopeless([pulling]) == ""
    clock.now += 100
    assert tending.hopeless([pulling]) == ""
    clock.now += 21
    why = tending.hopeless([pulling])
    assert "ImagePullBackOff: no such image" in why
    assert "given up after 120 s" in why


def test_a_pod_whose_node_does_not_confirm_is_let_go_after_its_grace_period() -> None:
    clock = Clock()
    tending = Tending(clock)
    leaving = replace(pod, is_leaving=True)
    assert tending.stuck([leaving, replace(pod, uid="p1")], grace_s=30) == []
    clock.now += 39
    assert tending.stuck([leaving], grace_s=30) == []
    clock.now += 2
    assert tending.stuck([leaving], grace_s=30) == [leaving]
    assert tending.stuck([replace(leaving, uid="p2")], grace_s=30) == []


def conditions(ready: str, containers: str, reason: str | None = None) -> list[dict[str, Any]]:
    """As the API server has them; Kubernetes' node controller leaves the reason away."""
    why = {"reason": reason} if reason else {}
    return [{"type": "Ready", "status": ready, **why}, {"type": "ContainersReady", "status": containers, **why}]


@pytest.mark.parametrize(
    ("found", "is_cut_off"),
    [
        (conditions("False", "True"), True),  # the node is NotReady, for its kubelet renews its lease no more
        (conditions("True", "True"), False),
        (conditions("False", "False", "ContainersNotReady"), False),  # a kubelet that lives ends it
        ([*conditions("True", "True")[1:], {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}], False),
        ([], False),
    ],
)
def test_a_silent_kubelet_is_seen_in_the_pod_itself(found: list[dict[str, Any]], is_cut_off: bool) -> None:
    view = read_pod({"metadata": {"name": "toy-0"}, "status": {"phase": "Running", "conditions": found}})
    assert view.is_cut_off is is_cut_off


def test_a_pod_whose_kubelet_is_silent_is_let_go_long_before_its_grace_period_is_over() -> None:
    clock = Clock()
    tending = Tending(clock)
    saving = replace(pod, uid="p1", is_leaving=True)  # of the same gang, on a node that lives
    cut_off = replace(pod, is_leaving=True, is_cut_off=True)
    assert tending.stuck([cut_off, saving], grace_s=120) == []
    clock.now += 20
    assert tending.stuck([cut_off, saving], grace_s=120) == []
    clock.now += 1
    assert tending.stuck([cut_off, saving], grace_s=120) == [cut_off]


def test_a_kubelet_that_was_silent_for_a_moment_gives_its_pods_their_grace_period() -> None:
    clock = Clock()
    tending = Tending(clock)
    cut_off = replace(pod, is_leaving=True, is_cut_off=True)
    for silent in (True, False, True):
        assert tending.stuck([replace(cut_off, is_cut_off=silent)], grace_s=120) == []
        clock.now += 15
    assert tending.stuck([replace(cut_off, is_leaving=False)], grace_s=120) == []  # and nobody is let go whom nobody deleted
    clock.now += 600
    assert tending.stuck([replace(cut_off, is_leaving=False)], grace_s=120) == []


HANDLE = RunHandle(launcher="jobset", name="toy", job_uri="memory://toy", uid="u")
QUEUED = {"name": "toy", "uid": "u", "labels": {"kueue.x-k8s.io/queue-name": "q"}}
JOBSET = {"metadata": QUEUED, "spec": {"replicatedJobs": [{"template": {"spec": {"completions": 2}}}]}}
OVERLOOKED = {**JOBSET, "metadata": {**QUEUED, "annotations": {SPEC: "{}"}}}  # ours, made from a launch spec


def listed(*items: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    return 200, {"metadata": {"resourceVersion": "9"}, "items": list(items)}, {}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A queued JobSet of which Kueue has made no Workload. Watches say nothing, so that every look is the server's."""
    made = ApiServer()
    made.routes = {
        "watch=true": "be silent",
        "/jobsets/toy": (200, JOBSET, {}),
        "/jobsets": listed(),
        "/pods": listed(),
        "/workloads": listed(),
    }
    yield made
    made.close()


class Tended:
    """A launcher whose clock is the test's, and what it wrote."""

    def __init__(self, server: ApiServer) -> None:
        self.clock, self.server = Clock(), server
        self.launcher = JobsetLauncher(server.kube, Site(namespace="ns"))
        self.launcher._tending = Tending(self.clock)

    def touches(self, after_s: float) -> list[dict[str, Any]]:
        """Bodies of all writes so far, once so much time has passed."""
        self.clock.now += after_s
        self.launcher.tend(HANDLE)
        return [body for method, _, body in self.server.asked if method != "GET" and body is not None]


def test_a_job_that_kueue_overlooks_is_touched_every_half_minute_with_another_value(server: ApiServer) -> None:
    tended = Tended(server)
    assert tended.touches(after_s=0) == tended.touches(after_s=29) == []
    assert len(tended.touches(after_s=2)) == 1
    assert len(tended.touches(after_s=29)) == 1
    first, second = tended.touches(after_s=2)
    notes = [body["metadata"].pop("annotations") for body in (first, second)]
    assert first == second == {"metadata": {}}  # nothing else is changed
    assert [list(note) for note in notes] == [["stagecoach.dev/touched-at"]] * 2
    assert notes[0] != notes[1]


class Overlooked(ApiServer):
    """Kueue makes a Workload of the JobSet when somebody touches it, and not before."""

    def next_answer(self, path: str) -> Any:
        if "/workloads" in path and any(method == "PATCH" and "/jobsets/" in there for method, there, _ in self.asked):
            return listed({"metadata": {"name": "w", "uid": "w"}, "spec": {"active": True}})
        return super().next_answer(path)


def test_an_overlooked_job_is_cancelled_by_somebody_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "TOUCH_S", 0.0)
    monkeypatch.setattr(reader, "POLL_S", 0.001)
    server = Overlooked()
    try:
        server.routes = {"/jobsets/toy": (200, OVERLOOKED, {}), "/workloads": listed()}
        JobsetLauncher(server.kube, Site(namespace="ns")).cancel(HANDLE)
        orders = [(path.partition("?")[0].rpartition("/")[2], body) for method, path, body in server.asked if method == "PATCH" and body]
    finally:
        server.close()
    assert orders[0][0] == "toy"
    name, body = orders[-1]
    assert (name, body["spec"], body["metadata"]["annotations"]["stagecoach.dev/stopped"]) == ("w", {"active": False}, "cancelled")


def test_a_job_that_kueue_never_takes_up_is_said_to_take_no_order(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WORKLOAD_S", 0.0)
    server.routes["/jobsets/toy"] = (200, OVERLOOKED, {})
    with pytest.raises(ClusterUnavailable, match="kubectl delete jobset -n ns toy"):
        JobsetLauncher(server.kube, Site(namespace="ns")).cancel(HANDLE)


@pytest.mark.parametrize("seen_by", ["a workload", "no queue", "its end", "its deletion"])
def test_a_job_that_is_known_or_has_nothing_to_wait_for_is_left_alone(server: ApiServer, seen_by: str) -> None:
    over = {"conditions": [{"type": "Completed", "status": "True"}]}
    changes: dict[str, dict[str, Any]] = {
        "no queue": {"metadata": {**QUEUED, "labels": {}}},
        "its end": {"status": over},
        "its deletion": {"metadata": {**QUEUED, "deletionTimestamp": "2026-11-21T10:00:00Z"}},
    }
    server.routes["/jobsets/toy"] = (200, {**JOBSET, **changes.get(seen_by, {})}, {})
    if seen_by == "a workload":
        server.routes["/workloads"] = listed({"metadata": {"name": "w", "uid": "w"}})
    tended = Tended(server)
    assert tended.touches(after_s=0) == tended.touches(after_s=31) == tended.touches(after_s=31) == []


def test_a_pod_that_a_finalizer_holds_is_let_go_rarely_and_the_finalizer_is_named(server: ApiServer) -> None:
    held = {
        "metadata": {"name": "toy-0", "uid": "p0", "deletionTimestamp": "2026-11-21T10:00:00Z", "finalizers": ["example.com/holds"]},
        "spec": {"nodeName": "n0"},
        "status": {"phase": "Running"},
    }
    notes = {SPEC: json.dumps({"grace_s": 30})}
    server.routes |= {
        "/jobsets/toy": (200, {**JOBSET, "metadata": {**QUEUED, "annotations": notes}}, {}),
        "/workloads": listed({"metadata": {"name": "w", "uid": "w"}}),
        "/pods": listed(held),
    }
    tended, told = Tended(server), dict[float, str]()  # by seconds after the first look
    sink = logger.add(lambda message: told.update({tended.clock.now - Clock.now: message.record["message"]}), level="WARNING")
    try:
        for second in (0, 40, 41, 42, 70, 71, 72, 130, 131, 132, 250, 251, 252, 490, 491, 492):
            tended.touches(after_s=Clock.now + second - tended.clock.now)
    finally:
        logger.remove(sink)
    assert list(told) == [41, 71, 131, 251, 491]  # 40 s are its grace period and what a kubelet needs
    assert len([path for method, path, _ in server.asked if method == "DELETE"]) == len(told)
    first, *later = told.values()
    assert "taken for dead" in first
    assert all("held by the finalizers example.com/holds" in line for line in later)
