"""Stores and processes: killed writers, forks, spawned children."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage import Store, StoreSettings, UsedAfterFork, open_store

# Forks a writer for each line it reads, so that sixty writers cost one start of Python. It never used a store itself.
NURSERY = """
import os, sys
import fsspec.implementations.local, xxhash, stagecoach.storage.file
from stagecoach.storage import open_store, StoreSettings

def write_for_ever():
    store, number = open_store(sys.argv[1], settings=StoreSettings(single_put_bytes=1 << 20, request_bytes=1 << 20)), 0
    while True:
        number += 1
        body = lambda: (bytes([number % 256]) * (1 << 20) for _ in range(4))
        store.publish("replaced", body())
        store.publish(f"new/{number}", body())
        store.create_if_absent(f"claims/{number}", bytes([number % 256]) * 5000)

for line in sys.stdin:
    writer = os.fork()
    if writer == 0:
        write_for_ever()
    print(writer, flush=True)
    os.waitpid(writer, 0)
    print("dead", flush=True)
"""
KILLS = 60


def test_a_writer_killed_at_any_point_leaves_no_torn_object(tmp_path: Path) -> None:
    uri, rng = f"file://{tmp_path}/root", random.Random(5)
    store, leftovers = open_store(uri), 0
    with subprocess.Popen([sys.executable, "-c", NURSERY, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        for _ in range(KILLS):
            _kill_a_writer(nursery, after_s=rng.uniform(0.002, 0.05))
            for info in store.list():
                body = store.read(info.key)  # checked against its stored checksum
                assert len(body) == (5000 if info.key.startswith("claims/") else 4 << 20), info.key
                assert body == body[:1] * len(body), info.key
            leftovers += store.sweep(older_than_s=0)
            store.delete_prefix("new")
            store.delete_prefix("claims")
        assert nursery.stdin is not None
        nursery.stdin.close()
    assert leftovers > 0, "the kills did strike in the middle of writing"


def _kill_a_writer(nursery: "subprocess.Popen[str]", *, after_s: float) -> None:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    print("write", file=nursery.stdin, flush=True)
    writer = int(nursery.stdout.readline())
    time.sleep(after_s)
    os.kill(writer, signal.SIGKILL)
    assert nursery.stdout.readline() == "dead\n"


def test_leftovers_are_swept_only_when_old(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    store.publish("a/b", b"1")
    (tmp_path / "a" / ".stagecoach-tmp-1-dead").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["a/b"]
    assert store.sweep(older_than_s=3600) == 0
    assert store.sweep(older_than_s=0) == 1
    assert store.read("a/b") == b"1"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # Python 3.12 says so too
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_fork_is_told_to_open_its_own(kind: str, build_store: Any) -> None:
    store = build_store(kind)
    store.publish("a", b"1")
    assert _in_fork(lambda: _use_after_fork(store)) == 0


def _use_after_fork(store: Store) -> int:
    try:
        store.read("a")
    except UsedAfterFork:
        return 0 if open_store(store.uri).read("a") == b"1" else 2
    return 1


def _in_fork(function: Any) -> int:
    """Runs it in a fork that ends at once, whatever happens. Returns its exit code; 99 when it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = function()
        finally:
            os._exit(code)
    for _ in range(200):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 99


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_spawned_process_uses_the_store_it_was_given(kind: str, build_store: Any) -> None:
    store = build_store(kind)
    store.publish("a", b"from the parent")
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.load(sys.stdin.buffer).read('a'))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, check=True)
    assert done.stdout == b"from the parent"


def test_without_extended_attributes_there_is_no_stored_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    store = open_store(f"file://{tmp_path}", settings=StoreSettings(fsync=False))
    store.publish("a", b"1")
    assert store.stat("a").checksum is None
    assert store.read("a") == b"1"
