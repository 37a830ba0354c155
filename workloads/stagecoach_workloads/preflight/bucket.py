"""What one rank finds out about the bucket: write, read, conditional create, bandwidth; and its server's clock."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from stagecoach.contract.preflight import BucketReport
from stagecoach.errors import StorageError
from stagecoach.storage import Store, StoreSettings, open_store

WINNER = "winner"


def check_bucket(uri: str, *, rank: int, megabytes: float, deadline_s: float) -> BucketReport:
    """Writes an object, reads it back, compares, and races with all other ranks for one key; removes what it wrote.

    All ranks of the job name the same `uri` and nobody else does. Raises StorageError, or RuntimeError when other bytes come back.
    """
    store = open_store(uri, settings=StoreSettings(deadline_s=deadline_s))
    body = os.urandom(max(1, int(megabytes * 1e6)))
    key = f"rank-{rank}"
    try:
        write_s = _timed(lambda: store.publish(key, body))
        start = time.perf_counter()
        back = store.read(key)
        read_s = time.perf_counter() - start
        if back != body:
            raise RuntimeError(f"{store.uri_of(key)} gave back other bytes than were written")
        created = store.create_if_absent(WINNER, str(rank).encode())
    finally:
        _remove(store, key)
    return BucketReport(uri=store.uri, write_mb_s=round(megabytes / write_s, 3), read_mb_s=round(megabytes / read_s, 3), created=created)


def bucket_clock_skew(uri: str, *, timeout_s: float = 5.0) -> float | None:
    """Seconds this machine's clock is ahead of the object store's, from the Date of any answer (an error's too); None where there is none.

    The header has whole seconds: half of one is added, and the result is good to about 0.5 s.
    """
    if not uri.startswith("s3://"):
        return None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
    if not endpoint.startswith(("http://", "https://")):
        return None
    before = time.time()
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_s) as answer:  # noqa: S310
            stated = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        stated = error.headers.get("Date")
    except OSError:
        return None
    after = time.time()
    try:
        there = parsedate_to_datetime(stated or "").timestamp() + 0.5
    except ValueError:
        return None
    return round((before + after) / 2 - there, 3)


def remove_winner(uri: str, *, deadline_s: float) -> None:
    """Rank 0 removes what the race left, once all ranks are through."""
    _remove(open_store(uri, settings=StoreSettings(deadline_s=deadline_s)), WINNER)


def _remove(store: Store, key: str) -> None:
    """What cannot be removed is not worth hiding the error that came first."""
    try:
        store.delete(key)
    except StorageError:
        pass


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)
