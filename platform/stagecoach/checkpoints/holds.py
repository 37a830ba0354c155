"""What keeps a checkpoint from being removed: a reader's lease, another run's pin, the job's own `stage.json`.

    leases/{holder}.json   a counter that its reader moves while it reads; no clock is in it, so no clock can be wrong
    pins/{run}.json        another run started from these checkpoints

Both sides of a race look after they wrote: a reader writes its lease, then looks whether COMMITTED still stands; gc removes COMMITTED, then
looks for leases before it touches data. So either the reader sees that it came too late, or gc sees the reader.
"""

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from loguru import logger

from stagecoach.checkpoints.listing import COMMITTED, QUARANTINED, CheckpointRef
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import Count, WholeNumber
from stagecoach.contract.records import Stored, decode, encode
from stagecoach.errors import CheckpointError, StorageError
from stagecoach.storage import NotFound

LEASES, PINS = "leases", "pins"
BEAT_S = 5.0
DEAD_S = 60.0  # a lease whose counter stood so long, on the watcher's own monotonic clock, has no reader any more

S = TypeVar("S", bound=Stored)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord(Stored):
    """`leases/{holder}.json`."""

    FORMAT = "stagecoach.lease"

    counter: WholeNumber
    step: WholeNumber
    attempt: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin(Stored):
    """`pins/{run}.json`: what another run started from."""

    FORMAT = "stagecoach.pin"

    run_id: str
    checkpoints: tuple[str, ...]  # URIs


class Lease:
    """Keeps what it holds from being removed while it is read. Use as a context manager; `hold` before reading each checkpoint."""

    def __init__(self, job: JobFolder, holder: str, *, beat_s: float = BEAT_S) -> None:
        """`holder` is for people: "{run}-{attempt}". A nonce keeps two readers of one name apart."""
        self._job, self._beat_s = job, beat_s
        self.key = f"{LEASES}/{re.sub(r'[^A-Za-z0-9-]+', '-', holder)[:80]}-{secrets.token_hex(4)}.json"
        self._counter = 0
        self._ref: CheckpointRef | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self.release()

    def hold(self, ref: CheckpointRef) -> bool:
        """From now on this lease is for `ref`. False when that is gone or was found bad: take another one."""
        self._ref = ref
        self._beat()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_beating, name="checkpoint-lease", daemon=True)
            self._thread.start()
        return is_there(self._job, ref)

    def release(self) -> None:
        """Nothing is held any more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            with contextlib.suppress(StorageError):  # it dies by itself: its counter stands
                self._job.store.delete(self.key)

    def _keep_beating(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                self._beat()
            except StorageError as error:
                logger.warning("{}: the lease could not be renewed: {}", self._job.store.uri_of(self.key), error)

    def _beat(self) -> None:
        with self._lock:
            assert self._ref is not None
            self._counter += 1
            record = LeaseRecord(counter=self._counter, step=self._ref.step, attempt=self._ref.attempt)
            self._job.store.publish(self.key, encode(record))


def is_there(job: JobFolder, ref: CheckpointRef) -> bool:
    """Committed, and nobody found it bad."""
    return job.store.exists(f"{ref.key}/{COMMITTED}") and not job.store.exists(f"{ref.key}/{QUARANTINED}")


class LeaseWatch:
    """Tells live leases from those of readers that were killed. Keep one for as long as you live: it must see counters stand still."""

    def __init__(self, *, dead_s: float = DEAD_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._dead_s, self._monotonic = dead_s, monotonic
        self._seen: dict[str, tuple[int, float]] = {}  # lease -> its counter and when we first saw that

    def held(self, job: JobFolder) -> dict[tuple[int, int], str]:
        """(step, attempt) -> the lease that holds it. Dead leases are removed. Raises ContractError when one cannot be read."""
        found: dict[tuple[int, int], str] = {}
        for info in job.store.list(LEASES):
            record = _read(job, info.key, LeaseRecord)
            if record is None:
                continue
            uri, now = job.store.uri_of(info.key), self._monotonic()
            counter, since = self._seen.get(uri, (-1, now))
            if counter != record.counter:
                self._seen[uri] = (record.counter, now)
            elif now - since >= self._dead_s:
                job.store.delete(info.key)
                continue
            found[record.step, record.attempt] = info.key
        return found


def pin(job: JobFolder, ref: CheckpointRef, *, run_id: str) -> None:
    """Notes in the job's folder that run `run_id` starts from `ref`, so that it stays. Raises CheckpointError when it is gone."""
    key = f"{PINS}/{run_id}.json"
    before = _read(job, key, Pin)
    uris = sorted({*(before.checkpoints if before else ()), ref.uri})
    job.store.publish(key, encode(Pin(run_id=run_id, checkpoints=tuple(uris))))
    if not is_there(job, ref):
        raise CheckpointError(f"{ref.uri} is gone or was found bad; `stagecoach checkpoint list {job.uri}` shows which there are")


class Holds:
    """Who needs which checkpoint of a job, looked up anew each time it is asked."""

    def __init__(self, job: JobFolder, watch: LeaseWatch) -> None:
        self._job, self._watch = job, watch

    def why_held(self) -> Callable[[CheckpointRef], str]:
        """Reads everything once; the function it returns says who needs a checkpoint, "" when nobody does.

        Raises ContractError, ObjectCorrupt when a lease, a pin or `stage.json` cannot be read: then nothing may be removed.
        """
        by_lease = self._watch.held(self._job)
        by_uri: dict[str, str] = {}
        for info in self._job.store.list(PINS):
            record = _read(self._job, info.key, Pin)
            by_uri |= {_tail(uri): f"run {record.run_id} started from it ({info.key})" for uri in record.checkpoints} if record else {}
        stage = self._job.stage()
        if stage is not None:
            by_uri[_tail(stage.checkpoint.uri)] = "stage.json names it"

        def why(ref: CheckpointRef) -> str:
            lease = by_lease.get((ref.step, ref.attempt))
            return f"it is being read ({lease})" if lease else by_uri.get(ref.key, "")

        return why


def _tail(uri: str) -> str:
    """`checkpoints/step-.../attempt-...`: a bucket that was moved as a whole keeps its meaning."""
    return "/".join(uri.rstrip("/").split("/")[-3:])


def _read(job: JobFolder, key: str, kind: type[S]) -> S | None:
    try:
        body = job.store.read(key)
    except NotFound:
        return None
    return decode(kind, body, uri=job.store.uri_of(key))
