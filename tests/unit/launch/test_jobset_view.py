"""Whoever is looked at twice is watched: then looking costs no request; what a watch cannot know is asked of the server."""

from collections.abc import Iterator
from typing import Any

import pytest

from stagecoach.launch.jobset.reader import JobsetApi
from stagecoach.launch.jobset.view import SINGLE, Looks
from stagecoach.testing.api_server import ApiServer
from stagecoach.testing.local_world import wait_for

LABEL = "jobset.sigs.k8s.io/jobset-name"


def jobset(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"kueue.x-k8s.io/queue-name": "q"}, "resourceVersion": "3"},
        "spec": {"replicatedJobs": [{"template": {"spec": {"completions": 2}}}]},
    }


def pod(name: str, index: int) -> dict[str, Any]:
    metadata = {"name": f"{name}-{index}", "uid": f"pod-{name}-{index}", "labels": {LABEL: name}, "resourceVersion": "4"}
    return {"metadata": metadata, "status": {"phase": "Running"}}


def workload(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"w-{name}", "uid": f"w-{name}", "labels": {"kueue.x-k8s.io/job-uid": f"uid-{name}"}, "resourceVersion": "5"}
    }


def listed(*items: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    return 200, {"metadata": {"resourceVersion": "9"}, "items": list(items)}, {}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """Ten jobs of two pods, all of which run; watches say nothing."""
    made = ApiServer()
    names = [f"job-{number}" for number in range(10)]
    made.routes = {
        "watch=true": "be silent",
        **{f"/jobsets/{name}": (200, jobset(name), {}) for name in names},
        "/jobsets": listed(*map(jobset, names)),
        "/pods": listed(*(pod(name, index) for name in names for index in (0, 1))),
        "/workloads": listed(*map(workload, names)),
    }
    yield made
    made.close()


def look_until_free(looks: Looks, server: ApiServer, name: str) -> None:
    """Looks again and again until a look makes no request."""

    def is_free() -> bool:
        before = len(server.asked)
        seen = looks.see(name, f"uid-{name}")
        assert seen is not None
        assert {view.name for view in seen.pods} >= {f"{name}-0", f"{name}-1"}
        assert seen.workload is not None
        return len(server.asked) == before

    wait_for(is_free, f"looks at {name} to be free")


def test_from_the_second_look_on_it_is_free(server: ApiServer) -> None:
    server.routes["/pods"] = listed(pod("job-0", 0), pod("job-0", 1))
    server.routes["/workloads"] = listed(workload("job-0"))
    looks = Looks(JobsetApi(server.kube, "ns"))
    look_until_free(looks, server, "job-0")
    watches = [path for _, path, _ in server.asked if "watch=true" in path]
    assert any("fieldSelector=metadata.name%3Djob-0" in path for path in watches)


def test_many_jobs_share_three_watches(server: ApiServer) -> None:
    looks = Looks(JobsetApi(server.kube, "ns"))
    names = [f"job-{number}" for number in range(10)]
    for _ in range(2):
        for name in names:
            looks.see(name, f"uid-{name}")
    look_until_free(looks, server, "job-9")
    assert len(looks._views) == SINGLE
    assert looks._wide is not None
    is_fresh, seen = looks._wide.see("job-7", "uid-job-7")
    assert is_fresh
    assert seen is not None
    assert [view.name for view in seen.pods] == ["job-7-0", "job-7-1"]  # its own alone


def test_an_order_or_a_job_that_no_watch_knows_goes_to_the_server(server: ApiServer) -> None:
    server.routes["/pods"] = listed(pod("job-0", 0), pod("job-0", 1))
    server.routes["/workloads"] = listed(workload("job-0"))
    looks = Looks(JobsetApi(server.kube, "ns"))
    look_until_free(looks, server, "job-0")
    looks.forget("uid-job-0")
    before = len(server.asked)
    assert looks.see("job-0", "uid-job-0") is not None
    assert len(server.asked) >= before + 3
    for _ in range(3):
        assert looks.see("job-0", "uid-of-another") is None
