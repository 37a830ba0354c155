"""What a store in trouble costs, in real time: rows F41-F48 of the fault list. Takes about eight minutes with --full, 40 s without.

python benchmarks/storage_faults.py [--full]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from stagecoach.storage import AccessDenied, Store, StoreSettings, open_store
from stagecoach.testing.fault_server import FaultServer
from stagecoach.testing.s3_server import bucket, s3_server

SMALL, LARGE = os.urandom(100_000), os.urandom(32 << 20)


def slow_down(store: Store, proxy: FaultServer, seconds: float, callers: int) -> None:
    """F41: every request is refused for so long; `callers` threads need one object each."""
    proxy.clear()
    began = time.monotonic()
    proxy.faults.refuse_while = lambda: time.monotonic() < began + seconds
    with ThreadPoolExecutor(callers) as pool:
        bodies = list(pool.map(lambda _: store.read("small"), range(callers)))
    took = time.monotonic() - began
    assert bodies == [SMALL] * callers
    share = proxy.count() / callers
    print(f"F41 SlowDown for {seconds:g} s, {callers} callers: done after {took:.1f} s, {share:.2f} requests per needed one (limit 3)")
    proxy.faults.refuse_while = lambda: False


def random_refusals(store: Store, proxy: FaultServer, calls: int = 400) -> None:
    """F42."""
    figures = []
    for share in (0.0, 0.05):
        proxy.faults.refuse_share = share
        proxy.clear()
        waits = [_timed(lambda: store.read("small")) for _ in range(calls)]
        figures.append((calls / sum(waits), sorted(waits)[int(0.99 * calls)], proxy.count() / calls))
    proxy.faults.refuse_share = 0.0
    (clean, clean_p99, _), (faulty, faulty_p99, requests) = figures
    print(
        f"F42 5 % random 503/500: {faulty:.0f} reads/s against {clean:.0f} clean, p99 {faulty_p99 * 1e3:.0f} against "
        f"{clean_p99 * 1e3:.0f} ms, {requests:.3f} requests per needed one"
    )


def broken_bodies(store: Store, proxy: FaultServer) -> None:
    """F43."""
    for fault in ("reset", "cut", "stall"):
        proxy.clear()
        setattr(proxy.faults, f"{fault}_times", 3)
        setattr(proxy.faults, f"{fault}_after_bytes", 5 << 20)
        took = _timed(lambda: _same(store.read("large"), LARGE))
        again = sum(entry.body_bytes for entry in proxy.seen) - len(LARGE)
        print(
            f"F43 three times '{fault}' in 32 MiB: right body after {took:.2f} s, {again / 1e6:.2f} MB read again, {proxy.count()} requests"
        )


def slow_tail(settings: StoreSettings, uri: str, proxy: FaultServer, calls: int = 300) -> None:
    """F44."""
    for hedge in (False, True):
        store = open_store(uri, settings=StoreSettings(hedge=hedge, read_timeout_s=settings.read_timeout_s))
        for _ in range(40):
            store.read_ranges("small", [(0, 4096)])
        proxy.clear()
        proxy.faults.slow_share, proxy.faults.slow_s = 0.01, 5.0
        waits = sorted(_timed(lambda store=store: store.read_ranges("small", [(0, 4096)])) for _ in range(calls))
        proxy.faults.slow_share = 0.0
        print(
            f"F44 1 % of answers 5 s late, {'hedged' if hedge else 'not hedged'}: p99 {waits[int(0.99 * calls)] * 1e3:.0f} ms, "
            f"max {waits[-1] * 1e3:.0f} ms, mean {statistics.mean(waits) * 1e3:.0f} ms, "
            f"extra requests {100 * (proxy.count() / calls - 1):.1f} %"
        )


def store_down(store: Store, proxy: FaultServer, seconds: float) -> None:
    """F46."""
    proxy.down()
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        waiting = [pool.submit(store.read, "small"), pool.submit(store.publish, "new", SMALL)]
        time.sleep(seconds)
        proxy.up()
        for future in waiting:
            future.result()
    print(f"F46 store down for {seconds:g} s: read and publish done {time.monotonic() - began - seconds:.2f} s after it came back")


def forbidden(store: Store, proxy: FaultServer) -> None:
    """F48."""
    proxy.clear()
    proxy.faults.forbid = True
    try:
        store.read("small")
    except AccessDenied as error:
        print(f"F48 403: {proxy.count()} request; {error}")
    proxy.faults.forbid = False


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _same(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise SystemExit("the bodies differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="30, 60 and 120 s of SlowDown, 60 s down")
    is_full = parser.parse_args().full
    with s3_server() as server, bucket(server) as name, FaultServer(server.url) as proxy:
        os.environ.update(server.environment)
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
        uri, settings = f"s3://{name}/faults", StoreSettings(read_timeout_s=8)
        store = open_store(uri, settings=settings)
        store.publish("small", SMALL)
        store.publish("large", LARGE)
        random_refusals(store, proxy)
        broken_bodies(open_store(uri, settings=StoreSettings(read_timeout_s=1)), proxy)
        slow_tail(settings, uri, proxy)
        store_down(store, proxy, 60 if is_full else 5)
        forbidden(store, proxy)
        for number, seconds in enumerate((30, 60, 120) if is_full else (5,)):
            for callers in (1, 16):  # a store that has called before no one: nothing saved up
                fresh = StoreSettings(connect_timeout_s=5 + number + callers / 100)
                slow_down(open_store(uri, settings=fresh), proxy, seconds, callers)


if __name__ == "__main__":
    main()
