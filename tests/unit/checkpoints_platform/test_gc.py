"""What is kept and what goes (F25, F33, F34, F39)."""

import threading
import time
from collections.abc import Callable

import pytest

from stagecoach.checkpoints import Lease, LeaseWatch, candidates, collect, list_checkpoints, pin, quarantine, verify
from stagecoach.contract.job import ObjectRef
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach.storage import ObjectInfo, Store
from stagecoach.testing.builders import attempt_start, stage_manifest
from stagecoach.testing.checkpoints import write_checkpoint


def steps(job: JobFolder) -> list[int]:
    return sorted({each.ref.step for each in list_checkpoints(job)})


def start(job: JobFolder, attempt: int, *, resumed_from_step: int = 0) -> None:
    assert job.claim_attempt(attempt_start(attempt=attempt, resumed_from_step=resumed_from_step))


class MeddledStore(Store):
    """A store where somebody else does something right after one of our calls."""

    meddle: Callable[[str, str], None]

    def delete(self, key: str) -> None:
        super().delete(key)
        self.meddle("delete", key)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found = super().list(prefix)
        self.meddle("list", prefix)
        return found


def meddled(job: JobFolder, meddle: Callable[[str, str], None]) -> JobFolder:
    """The same folder through a store that is meddled with."""
    store = MeddledStore(*job.store.__reduce__()[1])
    store.meddle = meddle
    return JobFolder(store)


class Clock:
    """A monotonic clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_newest_and_every_nth_stay(job: JobFolder) -> None:
    for step in (5, 10, 15, 20, 25, 30):
        write_checkpoint(job, step)
    done = collect(job, keep=2, keep_every_steps=10)
    assert steps(job) == [10, 20, 25, 30]
    assert [ref.step for ref in done.removed] == [5, 15]
    assert done.num_bytes > 5000
    assert job.store.list("checkpoints/step-00000005") == []
    assert collect(job, keep=2, keep_every_steps=10).removed == []


def test_a_dry_run_says_why_and_removes_nothing(job: JobFolder) -> None:
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]
    job.write_stage(stage_manifest(checkpoint=ObjectRef(uri=refs[2].uri, digest="00")))
    done = collect(job, keep=0, dry_run=True)  # two stay, whatever is asked
    assert [(each.ref.step, each.remove, each.why) for each in done.decisions] == [
        (5, True, "2 good ones are newer"),
        (10, False, "one of the newest 2"),
        (15, False, "stage.json names it"),
    ]
    assert steps(job) == [5, 10, 15]


def test_only_those_that_prove_right_are_counted(job: JobFolder) -> None:
    """F34: the newest are torn or damaged; the good ones behind them stay."""
    start(job, 1)
    for step in (5, 10, 15):
        write_checkpoint(job, step)
    write_checkpoint(job, 20, commit=False)
    damaged = [write_checkpoint(job, step) for step in (25, 30, 35, 40)]
    job.store.delete(f"{damaged[0].key}/MANIFEST.json")
    job.store.publish(f"{damaged[1].key}/COMMITTED", b"0" * 64)
    job.store.publish(f"{damaged[2].key}/model-00000.safetensors", b"short")
    quarantine(job, damaged[3], "for a test")
    collect(job, keep=2)
    assert steps(job) == [10, 15, 25, 30, 35, 40]  # 20: its attempt has committed since
    for step in (45, 50):
        write_checkpoint(job, step)
    collect(job, keep=2)
    assert steps(job) == [45, 50]


def test_what_another_run_started_from_and_what_stage_json_names_stays(job: JobFolder) -> None:
    refs = [write_checkpoint(job, step) for step in (5, 10, 15, 20, 25)]
    pin(job, refs[0], run_id="fork-1")
    pin(job, refs[1], run_id="fork-1")
    job.write_stage(stage_manifest(checkpoint=ObjectRef(uri=f"s3://moved/{refs[2].key}", digest="00")))
    collect(job, keep=2)
    assert steps(job) == [5, 10, 15, 20, 25]
    job.store.delete("pins/fork-1.json")
    collect(job, keep=2)
    assert steps(job) == [15, 20, 25]
    with pytest.raises(CheckpointError, match="is gone or was found bad"):
        pin(job, refs[0], run_id="fork-2")


@pytest.mark.parametrize("key", ["pins/r.json", "leases/r.json", "stage.json"])
def test_nothing_goes_while_it_cannot_be_read_who_needs_what(job: JobFolder, key: str) -> None:
    for step in (5, 10, 15):
        write_checkpoint(job, step)
    job.store.publish(key, b'{"format": "stagecoach.pin/9"}')
    done = collect(job, keep=2)
    assert key in done.refused
    assert steps(job) == [5, 10, 15]


def test_uncommitted_ones_go_only_once_their_writer_is_done_with_them(job: JobFolder) -> None:
    start(job, 1)
    write_checkpoint(job, 5)
    write_checkpoint(job, 10, commit=False)
    collect(job, keep=2)
    assert steps(job) == [5, 10]  # it may be being written
    start(job, 2, resumed_from_step=5)
    write_checkpoint(job, 10, 1)  # commits late: fenced
    write_checkpoint(job, 20, 2, commit=False)
    collect(job, keep=2)
    assert [(each.ref.step, each.ref.attempt) for each in list_checkpoints(job)] == [(20, 2), (5, 1)]


def test_a_checkpoint_that_is_read_stays_while_its_readers_counter_moves(job: JobFolder) -> None:
    """F33, F39: liveness is a counter on the watcher's own monotonic clock."""
    clock = Clock()
    watch = LeaseWatch(dead_s=60, monotonic=clock)
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]
    with Lease(job, "r2-1", beat_s=0.01) as lease:
        assert lease.hold(refs[0])
        for _ in range(3):
            collect(job, keep=2, watch=watch)
            clock.now += 100
            time.sleep(0.05)  # it beats
        assert steps(job) == [5, 10, 15]
    assert job.store.list("leases") == []
    collect(job, keep=2, watch=watch)
    assert steps(job) == [10, 15]


def test_a_lease_of_a_killed_reader_ends_when_its_counter_stood_long_enough(job: JobFolder) -> None:
    clock = Clock()
    watch = LeaseWatch(dead_s=60, monotonic=clock)
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]
    lease = Lease(job, "r2-1", beat_s=1000)  # beats once, when it takes hold
    lease.hold(refs[0])
    for moment in (1e9, 1e9 + 59):  # whatever the clock says at first sight
        clock.now = moment
        collect(job, keep=2, watch=watch)
        assert steps(job) == [5, 10, 15]
    clock.now += 1
    collect(job, keep=2, watch=watch)
    assert steps(job) == [10, 15]
    assert job.store.list("leases") == []
    assert not lease.hold(refs[0])  # it woke again, and is told
    lease.release()


def test_a_reader_that_comes_while_gc_removes_is_told_and_the_data_stays(job: JobFolder) -> None:
    """Its lease stands right after COMMITTED went."""
    start(job, 1)
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]
    lease = Lease(job, "late", beat_s=1000)
    told: list[bool] = []

    def come(verb: str, key: str) -> None:
        if (verb, key) == ("delete", f"{refs[0].key}/COMMITTED"):
            told.append(lease.hold(refs[0]))

    assert collect(meddled(job, come), keep=2).removed == []
    assert told == [False]
    assert job.store.exists(f"{refs[0].key}/model-00000.safetensors")
    lease.release()
    assert collect(job, keep=2).removed == [refs[0]]


def test_gc_beside_readers_that_restore_all_the_time(job: JobFolder) -> None:
    """F33: a reader that holds a lease reads to the end, or was told before it began."""
    start(job, 1)
    errors: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with Lease(job, "reader") as lease:
                    for ref in candidates(job):
                        if lease.hold(ref):
                            verify(job, ref)
                            break
            except BaseException as error:
                errors.append(error)
                raise

    readers = [threading.Thread(target=read) for _ in range(2)]
    watch = LeaseWatch()
    write_checkpoint(job, 1)
    for reader in readers:
        reader.start()
    for step in range(2, 12):
        write_checkpoint(job, step)
        collect(job, keep=2, watch=watch)
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    collect(job, keep=2, watch=watch)
    write_checkpoint(job, 12)
    collect(job, keep=2, watch=watch)
    assert len(steps(job)) == 2


def test_what_was_good_when_gc_looked_must_still_be(job: JobFolder) -> None:
    """The newest is quarantined between the decision and the removal: the old one is needed after all."""
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]

    def find_bad(verb: str, key: str) -> None:
        if (verb, key) == ("list", refs[1].key):
            quarantine(job, refs[2], "just now")

    done = collect(meddled(job, find_bad), keep=2)
    assert done.removed == []
    assert "step-00000015/attempt-1 was removed or quarantined meanwhile" in done.refused
    assert [ref.step for ref in candidates(job)] == [10, 5]
