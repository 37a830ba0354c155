"""A namespace of the cluster, with a queue, that goes with the test."""

from collections.abc import Iterator

import pytest

from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import connect
from stagecoach.testing.cluster_world import ClusterWorld


@pytest.fixture(scope="session")
def fake_nodes() -> int:
    """How many nodes KWOK pretends."""
    nodes = connect().list(paths.of(paths.CORE, "nodes"), labels="type=kwok", what="list nodes")["items"]
    if not nodes:
        pytest.skip("needs nodes that KWOK pretends (label type=kwok): cluster up --fake-nodes 8")
    return len(nodes)


@pytest.fixture
def world(fake_nodes: int) -> Iterator[ClusterWorld]:
    there = ClusterWorld()
    yield there
    there.close()
