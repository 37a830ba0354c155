"""A store or a host without room, and a store that goes away. F35, F36, F46; and the same protocol over S3."""

import json
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stagecoach.checkpoints import latest, verify
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StorageError
from stagecoach.storage import StoreSettings
from stagecoach.testing.fault_server import FaultServer
from stagecoach.testing.s3_server import bucket, s3_server
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.errors import SaveFailed
from stagecoach_workloads.testing.checkpointing import assert_equal, blank, whole_state

Build = Callable[..., Checkpoints]
PATIENT = StoreSettings(deadline_s=40, backoff_base_s=0.05, backoff_cap_s=0.5)
HASTY = StoreSettings(deadline_s=1.5, backoff_base_s=0.05, backoff_cap_s=0.2)


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[FaultServer, str, dict[str, str]]]:
    with s3_server() as server, bucket(server) as name, FaultServer(server.url) as proxy:
        yield proxy, name, {**server.environment, "AWS_ENDPOINT_URL_S3": proxy.url}


@pytest.fixture
def faulty(proxy: tuple[FaultServer, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name, value in proxy[2].items():
        monkeypatch.setenv(name, value)
    yield proxy[0]
    proxy[0].faults.refuse_while = lambda: False


@pytest.fixture
def s3_job(proxy: tuple[FaultServer, str, dict[str, str]], faulty: FaultServer) -> JobFolder:
    return JobFolder.open(f"s3://{proxy[1]}/{uuid.uuid4().hex[:8]}/jobs/j", settings=PATIENT)


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, whole_state(step))
    checkpoints.before_update()
    assert checkpoints.wait(120)


def go_on_training(checkpoints: Checkpoints) -> None:
    """The loop of a trainer, until a look says that the save came to nothing."""
    for _ in range(6000):
        checkpoints.before_update()
        time.sleep(0.01)


def test_over_s3_it_is_the_same(build: Build, s3_job: JobFolder) -> None:
    checkpoints = build(s3_job, store=PATIENT)
    save(checkpoints, 1)
    save(checkpoints, 2)
    into = blank(whole_state(0))
    values = build(s3_job, attempt=2, store=PATIENT).restore(into)
    assert values is not None
    assert values.step == 2
    assert_equal(into, whole_state(2))
    newest = latest(s3_job)
    assert newest is not None
    assert verify(s3_job, newest, level="quick").unproven == 0


def test_training_goes_on_while_the_store_is_gone_and_the_save_is_committed_when_it_is_back(
    build: Build, s3_job: JobFolder, faulty: FaultServer
) -> None:
    checkpoints = build(s3_job, store=PATIENT)
    save(checkpoints, 1)
    back = threading.Event()
    faulty.faults.refuse_while = lambda: not back.is_set()
    checkpoints.save(2, whole_state(2))
    waited_s = []
    for _ in range(200):
        waited_s.append(checkpoints.before_update())
        time.sleep(0.01)
    assert statistics.median(waited_s) < 0.1  # staging is waited for once; the store never
    assert checkpoints.committed_step == 1
    back.set()
    assert checkpoints.wait(60)
    assert checkpoints.committed_step == 2


def test_a_store_that_stays_away_is_told_by_a_step_soon_after(build: Build, s3_job: JobFolder, faulty: FaultServer) -> None:
    checkpoints = build(s3_job, store=HASTY)
    save(checkpoints, 1)
    faulty.faults.refuse_while = lambda: True
    checkpoints.save(2, whole_state(2))
    with pytest.raises(StorageError, match="saving step 2 failed: .*gave up after"):
        go_on_training(checkpoints)
    with pytest.raises(StorageError, match="saving step 2 failed"):
        checkpoints.save(3, whole_state(3))


def test_a_store_that_stays_away_fails_the_restore_and_puts_nothing_away(build: Build, s3_job: JobFolder, faulty: FaultServer) -> None:
    save(build(s3_job, store=PATIENT), 1)
    faulty.faults.refuse_while = lambda: True
    with pytest.raises(StorageError, match="gave up after"):
        build(s3_job, attempt=2, store=HASTY).restore(blank(whole_state(0)))
    faulty.faults.refuse_while = lambda: False
    assert latest(s3_job).step == 1  # type: ignore[union-attr]


def test_a_full_bucket_is_told_and_the_last_commit_stays(build: Build, job: JobFolder, tmp_path: Path) -> None:
    """What cannot be written (here: a file where the folder should be) fails the next step, not silently."""
    checkpoints = build(job)
    save(checkpoints, 1)
    (tmp_path / "root/runs/r/stages/00-pretrain/checkpoints/step-00000002").write_text("in the way")
    checkpoints.save(2, whole_state(2))
    with pytest.raises(StorageError, match="saving step 2 failed: .*step-00000002"):
        checkpoints.wait(60)
    (tmp_path / "root/runs/r/stages/00-pretrain/checkpoints/step-00000002").unlink()
    assert latest(job).step == 1  # type: ignore[union-attr]


# --- no room in host memory (F35)


class NoRoom:
    """A device without space, standing where the kernel reserves memory."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(28, "No space left on device")


def test_without_room_to_copy_a_save_is_skipped_on_all_ranks_loudly_and_training_goes_on(
    build: Build, job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [build(job, rank=rank, world_size=2) for rank in (0, 1)]
    monkeypatch.setattr(ranks[1]._buffer, "reserve", NoRoom(1))
    said: list[tuple[str, object]] = []
    monkeypatch.setattr(ranks[0]._context, "event", lambda name, value, *, step=None: said.append((name, value)))
    for rank in ranks:
        rank.save(1, whole_state(1))
    for rank in ranks:
        with pytest.raises(SaveFailed, match=r"step 1 was not saved: rank 1 could not copy its state"):
            rank.wait(60)
        rank.before_update()  # a step does not need it
    assert latest(job) is None
    assert [json.dumps(value) for name, value in said if name == "checkpoint_skipped"] == [
        '"rank 1 could not copy its state to host memory: [Errno 28] No space left on device"'
    ]
    for rank in ranks:
        rank.save(2, whole_state(2))
    assert all(rank.wait(60) for rank in ranks)
    assert latest(job).step == 2  # type: ignore[union-attr]


def test_too_many_skips_in_a_row_end_the_attempt(build: Build, job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = build(job, staging_failures=2)
    monkeypatch.setattr(checkpoints._buffer, "reserve", NoRoom(9))
    checkpoints.save(1, whole_state(1))
    with pytest.raises(SaveFailed, match="step 1 was not saved"):
        checkpoints.wait(60)
    checkpoints.save(2, whole_state(2))
    with pytest.raises(SaveFailed, match=r"2 saves in a row were skipped.*No space left on device"):
        checkpoints.wait(60)
