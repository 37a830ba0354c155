"""A store in trouble (reliability.md, F41-F48, F53): what is survived, and at how many requests. Over a real server behind a proxy."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stagecoach.constants import ExitCode
from stagecoach.storage import AccessDenied, NotFound, ObjectChanged, ObjectCorrupt, Store, StoreSettings, StoreUnavailable, open_store
from stagecoach.testing.fault_server import FaultServer

BODY = os.urandom(4 << 20)
SMALL = b"a small body"
QUICK = StoreSettings(
    backoff_base_s=0.05, backoff_cap_s=0.3, read_timeout_s=0.4, deadline_s=20, single_put_bytes=5 << 20, request_bytes=5 << 20
)
CALLS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("here"),
    "read_ranges": lambda store: store.read_ranges("here", [(0, 5)]),
    "stat": lambda store: store.stat("here").size,
    "list": lambda store: [info.key for info in store.list()],
    "publish": lambda store: store.publish("new", SMALL).size,
    "create_if_absent": lambda store: store.create_if_absent("claim", SMALL),
    "delete": lambda store: store.delete("here"),
}
RESULTS = {"read": SMALL, "read_ranges": [SMALL[:5]], "stat": len(SMALL), "list": ["here"], "publish": len(SMALL), "create_if_absent": True}


@pytest.fixture
def store(faulty: FaultServer, s3_uri: str) -> Store:
    return open_store(s3_uri, settings=QUICK)


def fresh(uri: str, clock: Any, faulty: FaultServer, **changes: Any) -> Store:
    """A store that has never called: nothing saved up. Its object 'here' was put by another."""
    open_store(uri, settings=QUICK).publish("here", SMALL)
    faulty.clear()
    return open_store(uri, settings=StoreSettings(**changes), clock=clock)


@pytest.mark.parametrize(("outage_s", "retry_after_s"), [(30, None), (60, 7.0), (120, None), (120, 7.0)])
def test_f41_slowdown_costs_at_most_three_requests_per_needed_one(
    outage_s: int, retry_after_s: float | None, faulty: FaultServer, s3_uri: str, clock: Any
) -> None:
    store = fresh(s3_uri, clock, faulty)
    for calls, (name, use) in enumerate(CALLS.items(), start=1):
        began = clock.now
        faulty.faults.refuse_while = lambda began=began: clock.now < began + outage_s
        faulty.faults.retry_after_s = retry_after_s
        assert use(store) == RESULTS.get(name), name
        assert faulty.count() <= 3 * calls, name
        assert clock.now - began >= outage_s


def test_f41_a_process_with_a_record_looks_often_and_stays_within_the_budget(faulty: FaultServer, s3_uri: str, clock: Any) -> None:
    store = fresh(s3_uri, clock, faulty)
    for _ in range(20):
        store.stat("here")
    faulty.faults.refuse_while = lambda: clock.now < 30
    store.stat("here")
    assert clock.now < 30 + 21, "the pause between two looks stays short"
    assert faulty.count() <= 3 * 21


def test_f41_sixteen_callers_send_at_most_three_requests_each(faulty: FaultServer, s3_uri: str, store: Store) -> None:
    store.publish("here", SMALL)
    caller = open_store(s3_uri, settings=StoreSettings(deadline_s=8, backoff_base_s=0.05, backoff_cap_s=0.3, concurrency=8))
    faulty.clear()
    back_at = time.monotonic() + 1.5
    faulty.faults.refuse_while = lambda: time.monotonic() < back_at
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: caller.read("here"), range(16))) == [SMALL] * 16
    assert faulty.count() <= 3 * 16


def test_f41_past_the_deadline_the_error_says_what_and_how_long(faulty: FaultServer, s3_uri: str, clock: Any) -> None:
    store = fresh(s3_uri, clock, faulty)
    faulty.faults.refuse_while = lambda: True
    with pytest.raises(StoreUnavailable, match=r"reading s3://.*/here: gave up after 180 s and 3 requests.*503 SlowDown") as caught:
        store.read("here")
    assert caught.value.exit_code == ExitCode.RETRY
    assert faulty.count() == 3


def test_f41_retry_after_is_honoured(faulty: FaultServer, s3_uri: str, clock: Any) -> None:
    store = fresh(s3_uri, clock, faulty)
    faulty.faults.refuse_while = lambda: clock.now < 20
    faulty.faults.retry_after_s = 25
    store.read("here")
    assert 25 <= clock.now < 27
    assert faulty.count() == 2


def test_f42_five_percent_refusals_cost_five_percent_of_requests(faulty: FaultServer, store: Store) -> None:
    store.publish("here", SMALL)
    faulty.clear()
    faulty.faults.refuse_share = 0.05
    assert all(store.read("here") == SMALL for _ in range(150))
    assert 150 <= faulty.count() <= 150 * 1.15


@pytest.mark.parametrize("fault", ["reset", "cut", "stall"])
@pytest.mark.parametrize("way", ["read", "read_ranges"])
def test_f43_a_broken_body_goes_on_where_it_stopped(fault: str, way: str, faulty: FaultServer, store: Store) -> None:
    store.publish("here", BODY)
    faulty.clear()
    setattr(faulty.faults, f"{fault}_times", 2)
    setattr(faulty.faults, f"{fault}_after_bytes", 1 << 20)
    body = store.read("here") if way == "read" else store.read_ranges("here", [(0, len(BODY))])[0]
    assert body == BODY
    gets = [entry for entry in faulty.seen if entry.method == "GET"]
    assert len(gets) == 3
    assert [entry.range for entry in gets[1:]] != [gets[0].range] * 2, "later requests ask for the rest only"
    sent_again = sum(entry.body_bytes for entry in gets) - len(BODY)
    assert sent_again <= 1 << 20, "at most what a reset threw away on its way"


def test_f43_a_resumed_body_never_mixes_two_versions(faulty: FaultServer, s3_uri: str, store: Store) -> None:
    store.publish("here", BODY)
    faulty.faults.cut_times, faulty.faults.cut_after_bytes = 1, 1 << 20
    other, newer = open_store(s3_uri, settings=QUICK), BODY[::-1]
    original, replaced = store._backend.download, []

    def replace_once(download: Any) -> None:
        if download.body and not replaced:
            replaced.append(other.publish("here", newer))
        original(download)

    store._backend.download = replace_once  # type: ignore[method-assign]
    assert store.read("here") == newer
    faulty.faults.cut_times = 1
    replaced.clear()
    newer = BODY
    with pytest.raises(ObjectChanged):
        store.read_ranges("here", [(0, len(BODY))])


def test_f44_a_slow_tail_is_hedged_with_few_extra_requests(faulty: FaultServer, store: Store) -> None:
    store.publish("here", SMALL)
    for _ in range(60):
        store.read_ranges("here", [(0, 5)])
    faulty.clear()
    faulty.faults.slow_share, faulty.faults.slow_s = 0.02, 2.0
    waits = []
    for _ in range(100):
        began = time.monotonic()
        store.read_ranges("here", [(0, 5)])
        waits.append(time.monotonic() - began)
    slow = [wait for wait in waits if wait > 1.5]
    assert len(slow) <= 1, "only when both of two are slow"
    assert faulty.count() <= 106


def test_f45_a_slow_line_is_no_error(faulty: FaultServer, s3_uri: str) -> None:
    store = open_store(s3_uri, settings=StoreSettings(deadline_s=0.5, read_timeout_s=0.4))
    store.publish("here", BODY[: 1 << 20])
    faulty.faults.bytes_per_s = 1 << 20
    began = time.monotonic()
    assert store.read("here") == BODY[: 1 << 20]
    assert time.monotonic() - began > 0.7, "longer than the deadline, but never silent"


def test_f46_a_store_that_is_down_is_waited_for(faulty: FaultServer, store: Store) -> None:
    store.publish("here", BODY)
    faulty.down()
    with ThreadPoolExecutor(2) as pool:
        reading, writing = pool.submit(store.read, "here"), pool.submit(store.publish, "new", SMALL)
        time.sleep(1.5)
        faulty.up()
        assert reading.result() == BODY
        assert writing.result().size == len(SMALL)


def test_f46_past_the_deadline_it_says_who_does_not_answer(faulty: FaultServer, s3_uri: str, clock: Any) -> None:
    store = open_store(s3_uri, settings=StoreSettings(deadline_s=60), clock=clock)
    faulty.down()
    with pytest.raises(StoreUnavailable, match=rf"gave up after 60 s .*{faulty.url} refuses connections.*Check that the store runs"):
        store.read("here")


@pytest.fixture
def credentials(tmp_path: Path, server: Any, faulty: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a session token into the credentials file, the way a sidecar does."""
    path = tmp_path / "credentials"
    key, secret = (server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(token: str) -> None:
        path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\naws_session_token = {token}\n")

    write("an-old-session-token")
    return write


def _open_with_token(uri: str) -> Store:
    store = open_store(uri, settings=QUICK)
    try:
        store.publish("here", SMALL)
    except AccessDenied as error:
        pytest.skip(f"the server of AWS_ENDPOINT_URL_S3 takes no session tokens ({error}); moto's does")
    return store


@pytest.mark.parametrize("name", CALLS)
def test_f47_expired_credentials_are_read_anew_once(name: str, credentials: Any, faulty: FaultServer, s3_uri: str) -> None:
    renewing = _open_with_token(s3_uri)
    faulty.faults.expired_token = "an-old-session-token"
    credentials("a-new-session-token")
    faulty.clear()
    assert CALLS[name](renewing) == RESULTS.get(name)
    assert faulty.seen[0].status == 400
    assert faulty.count() == (3 if name == "stat" else 2), "a refused HEAD has no body: the client itself asks for the bucket's region"


def test_f47_sixteen_calls_refresh_once(credentials: Any, faulty: FaultServer, s3_uri: str) -> None:
    renewing = _open_with_token(s3_uri)
    faulty.faults.expired_token = "an-old-session-token"
    credentials("a-new-session-token")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: renewing.read("here"), range(16))) == [SMALL] * 16
    assert renewing._backend.connection._generation == 1  # type: ignore[attr-defined]


def test_f47_credentials_that_stay_expired_are_an_error_after_two_requests(faulty: FaultServer, s3_uri: str, credentials: Any) -> None:
    credentials("a-token-that-stays")
    faulty.faults.expired_token = "a-token-that-stays"
    with pytest.raises(AccessDenied, match="session token has expired"):
        open_store(s3_uri, settings=QUICK).read("here")
    assert faulty.count() == 2


VERBS = ["GetObject", "GetObject", "HeadObject", "ListBucket", "PutObject", "PutObject", "DeleteObject"]


@pytest.mark.parametrize(("name", "verb"), list(zip(CALLS, VERBS, strict=True)))
def test_f48_forbidden_is_one_request_and_one_clear_error(name: str, verb: str, faulty: FaultServer, store: Store) -> None:
    faulty.faults.forbid = True
    with pytest.raises(AccessDenied, match=rf"{verb} s3://.*: 403 .*allow s3:{verb} on bucket 'stagecoach-test-.*Not tried again"):
        CALLS[name](store)
    assert faulty.count() == 1


def test_not_found_is_one_request(faulty: FaultServer, store: Store) -> None:
    for look in (store.read, store.stat):
        faulty.clear()
        with pytest.raises(NotFound):
            look("nothing")
        assert faulty.count() == 1


def test_f53_a_new_commit_is_seen_at_once(store: Store, s3_uri: str) -> None:
    assert store.list_folders("checkpoints") == []
    assert store.list("checkpoints") == []
    assert not store.exists("checkpoints/step-1/COMMITTED")
    assert open_store(s3_uri).create_if_absent("checkpoints/step-1/COMMITTED", b"1")
    assert store.exists("checkpoints/step-1/COMMITTED")
    assert store.list_folders("checkpoints") == ["step-1"]
    assert [info.key for info in store.list("checkpoints")] == ["checkpoints/step-1/COMMITTED"]


def test_a_creator_whose_reply_was_lost_learns_that_it_won(faulty: FaultServer, s3_uri: str, store: Store) -> None:
    faulty.faults.lost_replies_times = 1
    assert store.create_if_absent("claim", SMALL) is True
    assert faulty.count("PUT") == 2
    faulty.faults.lost_replies_times = 1
    assert open_store(s3_uri, settings=QUICK).create_if_absent("claim", SMALL) is False, "the very same body, another caller"


def test_who_asks_what_is_in_the_way_and_gets_no_reply_asks_again(faulty: FaultServer, s3_uri: str, store: Store) -> None:
    """The connection breaks while the refusal of the creation is being handled: it is a broken connection, no second refusal."""
    assert store.create_if_absent("claim", SMALL)
    faulty.faults.lost_replies_method, faulty.faults.lost_replies_times = "HEAD", 3  # aiohttp asks twice by itself
    assert open_store(s3_uri, settings=QUICK).create_if_absent("claim", SMALL) is False
    assert faulty.count("HEAD") == 4


def test_a_write_that_breaks_while_its_caller_handles_a_missing_object_is_tried_again(faulty: FaultServer, store: Store) -> None:
    faulty.faults.lost_replies_times = 3
    try:
        store.read("missing")
    except NotFound:
        store.publish("missing", SMALL)
    assert store.read("missing") == SMALL
    assert faulty.count("PUT") == 4


def test_of_sixteen_creators_whose_replies_are_lost_one_wins(faulty: FaultServer, store: Store) -> None:
    for round_ in range(3):
        faulty.faults.lost_replies_times = 16
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda _: store.create_if_absent(f"claim/{round_}", SMALL), range(16)))  # noqa: B023
        assert won.count(True) == 1


def test_a_large_publish_survives_lost_replies(faulty: FaultServer, store: Store) -> None:
    def pieces() -> Any:
        yield BODY
        yield BODY
        faulty.faults.lost_replies_method, faulty.faults.lost_replies_times = "POST", 1  # the completion's

    faulty.faults.lost_replies_times = 1  # a part's
    info = store.publish("here", pieces())
    assert store.read("here") == BODY * 2
    assert store.stat("here") == info
    assert store.sweep(older_than_s=0) == 0


def test_damage_at_rest_is_found_while_reading(server: Any, store: Store, s3_uri: str) -> None:
    import s3fs

    store.publish("here", SMALL)
    checksum = store.stat("here").checksum
    fs = s3fs.S3FileSystem(endpoint_url=server.url, skip_instance_cache=True)
    fs.pipe_file(f"{s3_uri}/here", SMALL[::-1], Metadata={"stagecoach-xxh3-128": checksum})
    with pytest.raises(ObjectCorrupt, match="damaged"):
        store.read("here")
