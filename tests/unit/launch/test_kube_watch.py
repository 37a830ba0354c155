"""Watches that break in every way they do: forgotten versions, silence, broken connections. What is told is fresh, or nothing is told."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stagecoach.errors import ClusterUnavailable
from stagecoach.launch.kube.errors import Denied
from stagecoach.launch.kube.watch import SILENCE_S, Reflector
from stagecoach.testing.api_server import ApiServer, status


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def thing(uid: str, version: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}, **more}


def listed(version: int, *things: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    return 200, {"metadata": {"resourceVersion": str(version)}, "items": list(things)}, {}


def events(*found: tuple[str, dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
    return 200, b"".join(json.dumps({"type": kind, "object": item}).encode() + b"\n" for kind, item in found), {}


def reflector(server: ApiServer, clock: Clock | None = None, **more: Any) -> Reflector:
    return Reflector(server.kube, "/pods", labels="a=b", what="pods", clock=clock or Clock(), **more)


def test_one_groups_objects_are_found_and_a_changed_label_moves_them(server: ApiServer) -> None:
    watched = Reflector(server.kube, "/things", what="things", group=lambda thing: thing["metadata"].get("labels", {}).get("job", ""))

    def thing(name: str, job: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": {"job": job}}}

    def names(job: str | None = None) -> list[str]:
        return [item["metadata"]["name"] for item in watched.objects(job) or ()]

    for name, job in (("b", "one"), ("a", "one"), ("c", "two")):
        watched.take({"type": "ADDED", "object": thing(name, job)})
    assert (names("one"), names("two"), names("three"), names()) == (["a", "b"], ["c"], [], ["a", "b", "c"])
    watched.take({"type": "MODIFIED", "object": thing("a", "two")})
    assert (names("one"), names("two")) == (["b"], ["a", "c"])
    watched.take({"type": "DELETED", "object": thing("b", "one")})
    assert (names("one"), names()) == ([], ["a", "c"])


def test_a_list_and_the_events_after_it_are_the_picture(server: ApiServer) -> None:
    server.answers = [
        listed(5, thing("a", 3), thing("b", 4)),
        events(
            ("MODIFIED", thing("a", 6, phase="Running")), ("DELETED", thing("b", 7)), ("ADDED", thing("c", 8)), ("BOOKMARK", thing("", 9))
        ),
        events(),
    ]
    watched = reflector(server)
    assert watched.objects() is None
    watched.round()
    found = watched.objects()
    assert found is not None
    assert [(item["metadata"]["name"], item.get("phase")) for item in found] == [("a", "Running"), ("c", None)]
    watched.round()
    assert "resourceVersion=9" in server.asked[-1][1]
    assert len([path for _, path, _ in server.asked if "watch" not in path]) == 1


@pytest.mark.parametrize(
    "gone",
    [status(410, "Expired", "too old"), events(("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}))],
)
def test_f63_a_forgotten_version_is_listed_anew(server: ApiServer, gone: Any) -> None:
    server.answers = [listed(5, thing("a", 3)), gone, listed(50, thing("b", 49)), events()]
    watched = reflector(server)
    watched.round()
    watched.round()
    found = watched.objects()
    assert found is not None
    assert [item["metadata"]["name"] for item in found] == ["b"]


def test_a_broken_connection_goes_on_from_the_last_event(server: ApiServer) -> None:
    server.answers = [listed(5), "hang up", events(("ADDED", thing("a", 8)))]
    watched = reflector(server)
    with pytest.raises(ClusterUnavailable):
        watched.round()
    watched.round()
    assert "resourceVersion=5" in server.asked[-1][1]
    assert [item["metadata"]["name"] for item in watched.objects() or ()] == ["a"]


def test_silence_ends_a_watch_and_its_picture_is_no_longer_told(server: ApiServer) -> None:
    server.answers = [listed(5, thing("a", 3)), "be silent"]
    clock = Clock()
    watched = reflector(server, clock, silence_s=0.3)
    with pytest.raises(ClusterUnavailable, match="pods"):
        watched.round()
    assert watched.objects() is not None
    clock.now += 1.0
    assert watched.objects() is None


def test_a_picture_is_fresh_as_long_as_a_live_watch_may_be_silent(server: ApiServer) -> None:
    server.answers = [listed(5, thing("a", 3)), events()]
    clock = Clock()
    watched = reflector(server, clock)
    watched.round()
    clock.now += SILENCE_S - 1
    assert watched.objects()
    clock.now += 2
    assert watched.objects() is None


def test_all_is_listed_again_now_and_then_in_case_an_event_was_missed(server: ApiServer) -> None:
    server.answers = [listed(5, thing("a", 3)), events(), listed(6), events()]
    clock = Clock()
    watched = reflector(server, clock)
    watched.round()
    clock.now += 601
    watched.round()
    assert watched.objects() == []


def test_what_may_not_be_watched_ends_the_thread_and_stays_untold(server: ApiServer) -> None:
    server.answers = [status(403, message="pods is forbidden")]
    watched = reflector(server)
    with pytest.raises(Denied):
        watched.round()
    watched.start()
    assert watched._thread is not None
    watched._thread.join(10)
    assert not watched._thread.is_alive()
    assert watched.objects() is None
