"""Stores of every kind, each below a root of its own."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage import Store, StoreSettings, SystemClock, open_store
from stagecoach.storage.generic import GenericBackend
from stagecoach.storage.retry import Gate
from stagecoach.storage.s3_connection import Connection
from stagecoach.testing.fault_server import FaultServer
from stagecoach.testing.s3_server import S3Server, bucket, s3_server

BACKENDS = ["memory", "file", "s3", "generic"]


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="session")
def test_bucket(server: S3Server) -> Iterator[str]:
    with bucket(server) as name:
        yield name


@pytest.fixture
def s3_uri(server: S3Server, test_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root of its own; the environment points at the server."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{test_bucket}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def faulty(server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """The same server behind one that misbehaves on order."""
    with FaultServer(server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


BuildStore = Callable[..., Store]


@pytest.fixture
def build_store(request: pytest.FixtureRequest, tmp_path: Path) -> BuildStore:
    """build_store(kind, **settings): an empty store of that kind."""

    def build(kind: str, **changes: Any) -> Store:
        settings = replace(StoreSettings(single_put_bytes=5 << 20, request_bytes=5 << 20, fsync=False), **changes)
        if kind == "generic":  # the way of gs:// and az://, over the one object store that is here
            return _generic(request.getfixturevalue("s3_uri"), settings)
        uris = {"memory": f"memory://{uuid.uuid4().hex}", "file": f"file://{tmp_path}/root"}
        return open_store(uris.get(kind) or request.getfixturevalue("s3_uri"), settings=settings)

    return build


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, build_store: BuildStore) -> Store:
    return build_store(request.param)


def _generic(uri: str, settings: StoreSettings) -> Store:
    gate = Gate(settings, SystemClock())
    return Store(GenericBackend("s3", _file_system(settings), settings, gate), uri.removeprefix("s3://"))


@cache
def _file_system(settings: StoreSettings) -> Any:
    return Connection(settings, Gate(settings, SystemClock())).file_system()


class FakeClock:
    """Time passes only when somebody sleeps. Thread-safe."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds
            self.slept.append(seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
