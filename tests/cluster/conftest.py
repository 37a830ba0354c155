"""A namespace of the cluster, with a queue, that goes with the test."""

from collections.abc import Iterator

import pytest

from stagecoach.testing.cluster_world import ClusterWorld


@pytest.fixture
def world() -> Iterator[ClusterWorld]:
    there = ClusterWorld()
    yield there
    there.close()
