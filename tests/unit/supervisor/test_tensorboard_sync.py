"""TensorBoard's files on their way to the bucket: whole records only, bounded, and never in anybody's way."""

import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StorageError
from stagecoach.supervisor import tensorboard
from stagecoach.supervisor.tensorboard import TensorBoardSync, whole_records

NAME = "events.out.tfevents.1790000000.host.7.000000"


def record(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + b"crc1" + body + b"crc2"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_only_whole_records_are_kept_of_any_prefix(bodies: list[bytes], data: st.DataObject) -> None:
    records = [record(body) for body in bodies]
    whole = b"".join(records)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, records[:count])) for count in range(len(records) + 1)]
    assert whole_records(whole[:cut]) == max(end for end in ends if end <= cut)


def test_files_are_published_as_they_grow_and_what_is_no_event_file_stays(tmp_path: Path) -> None:
    job, folder = JobFolder.open(f"file://{tmp_path}/job"), tmp_path / "local"
    sync = TensorBoardSync(job, every_s=0.02)
    sync.follow(folder, 2)
    folder.mkdir()  # made by a rank later
    key = f"tensorboard/attempt-2/{NAME}"
    (folder / NAME).write_bytes(record(b"one") + record(b"two")[:-3])
    (folder / "core.1234").write_bytes(b"x" * 100)
    (folder / "tfevents.notes").write_bytes(b"no records")
    (folder / "tfevents.link").symlink_to("/etc/passwd")
    wait_until(lambda: job.store.exists(key))
    assert job.store.read(key) == record(b"one")
    (folder / NAME).write_bytes(record(b"one") + record(b"two"))
    wait_until(lambda: job.store.read(key) == record(b"one") + record(b"two"))
    assert [info.key for info in job.store.list("tensorboard")] == [key]


def test_the_end_of_an_attempt_is_kept_when_its_folder_goes_and_the_next_attempt_begins(tmp_path: Path) -> None:
    job = JobFolder.open(f"file://{tmp_path}/job")
    sync = TensorBoardSync(job, every_s=3600)
    for attempt in (1, 2):
        folder = tmp_path / f"local-{attempt}"
        folder.mkdir()
        sync.follow(folder, attempt)
        (folder / NAME).write_bytes(record(b"x" * attempt))
        sync.let_go()
        shutil.rmtree(folder)
    assert sync.flush(10)
    assert [job.store.read(f"tensorboard/attempt-{n}/{NAME}") for n in (1, 2)] == [record(b"x"), record(b"xx")]
    sync.let_go()  # nothing is followed now
    assert sync.flush(0.1)


class Bucket:
    """Stands at the seam of the job's folder. `go` clear: a write waits. `fails`: a write raises."""

    def __init__(self) -> None:
        self.go, self.fails = threading.Event(), False
        self.go.set()
        self.written: list[tuple[int, str, int]] = []

    def write_tensorboard(self, attempt: int, name: str, body: bytes) -> None:
        self.go.wait(20)
        if self.fails:
            raise StorageError("no bucket today")
        self.written.append((attempt, name, len(body)))


def sync_with(bucket: Any, folder: Path, *, every_s: float) -> TensorBoardSync:
    folder.mkdir()
    sync = TensorBoardSync(bucket, every_s=every_s)
    sync.follow(folder, 1)
    return sync


def test_a_bucket_that_does_not_answer_holds_up_nobody(tmp_path: Path) -> None:
    bucket = Bucket()
    bucket.go.clear()
    sync = sync_with(bucket, tmp_path / "local", every_s=0.01)
    (tmp_path / "local" / NAME).write_bytes(record(b"one"))
    time.sleep(0.05)  # the thread is in the bucket now
    (tmp_path / "local" / NAME).write_bytes(record(b"one") * 2)
    started = time.monotonic()
    sync.let_go()
    sync.follow(tmp_path / "next", 2)
    assert not sync.flush(0.1)
    assert time.monotonic() - started < 10
    bucket.go.set()
    assert sync.flush(10)
    assert bucket.written[-1] == (1, NAME, 2 * len(record(b"one")))  # the newest state of the file comes last


def test_a_bucket_that_fails_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tensorboard, "logger", SimpleNamespace(warning=said.append, info=said.append))
    bucket = Bucket()
    bucket.fails = True
    sync = sync_with(bucket, tmp_path / "local", every_s=0.01)
    (tmp_path / "local" / NAME).write_bytes(record(b"one"))
    wait_until(lambda: bool(said))
    time.sleep(0.05)
    bucket.fails = False
    wait_until(lambda: bool(bucket.written))
    wait_until(lambda: len(said) == 2)
    assert said == ["TensorBoard's files do not reach the bucket: no bucket today", "TensorBoard's files reach the bucket again"]
    sync.let_go()
    assert sync.flush(1)


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tensorboard, "logger", SimpleNamespace(warning=said.append))
    monkeypatch.setattr(tensorboard, "LAST_BYTES", 250)
    monkeypatch.setattr(tensorboard, "FILE_BYTES", 1000)
    bucket = Bucket()
    sync = sync_with(bucket, tmp_path / "local", every_s=3600)
    for number, size in enumerate((100, 100, 100, 5000)):
        (tmp_path / "local" / f"tfevents.{number}").write_bytes(record(b"x" * (size - 16)))
    sync.let_go()
    assert sync.flush(10)
    assert [(name, size) for _, name, size in bucket.written] == [("tfevents.1", 100), ("tfevents.2", 100)]  # the newest that fit, in order
    assert len(said) == 2
