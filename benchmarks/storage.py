"""Storage against its peer and its limit, in one run: ranged reads against s3fs, publishing with a digest against without.

    python benchmarks/storage.py            # over the S3 server of AWS_ENDPOINT_URL_S3, else over moto's

Prints one line a figure. Ratios are medians of rounds in which both sides take turns.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import s3fs

from stagecoach.storage import Store, StoreSettings, open_store
from stagecoach.storage import upload as upload_module
from stagecoach.testing.fault_server import FaultServer
from stagecoach.testing.s3_server import S3Server, bucket, s3_server

MIB = 1 << 20
ROUNDS = 5
IMAGES, IMAGE_BYTES = 400, 40_000  # one window of samples: near each other, in no order


class NoDigest:
    """What publishing costs without one."""

    def update(self, piece: bytes) -> None: ...

    def hex(self) -> str:
        return "0" * 32


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare_ranges(store: Store, proxy: FaultServer) -> None:
    body = os.urandom(IMAGES * (IMAGE_BYTES + 1536))
    store.publish("shard.tar", body)
    ranges = [(number * 7919 % IMAGES * (IMAGE_BYTES + 1536) + 1024, IMAGE_BYTES) for number in range(IMAGES)]
    expected = [body[start : start + size] for start, size in ranges]
    peer = s3fs.S3FileSystem(endpoint_url=proxy.url, skip_instance_cache=True)
    path = store.uri_of("shard.tar")
    starts, ends = [start for start, _ in ranges], [start + size for start, size in ranges]
    ways: dict[str, Callable[[], list[bytes]]] = {
        "stagecoach": lambda: store.read_ranges("shard.tar", ranges),
        "s3fs": lambda: peer.cat_ranges([path] * IMAGES, starts, ends, max_gap=None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    requests = {}
    for _ in range(ROUNDS):
        for name, read in ways.items():
            proxy.clear()
            seconds[name].append(timed(lambda read=read: check(read() == expected)))
            requests[name] = proxy.count("GET")
    ours, theirs = (statistics.median(seconds[name]) for name in ("stagecoach", "s3fs"))
    print(f"read_ranges, {IMAGES} ranges of {IMAGE_BYTES} B: {requests['stagecoach']} requests, {ours:.3f} s")
    print(f"s3fs, a request a range:              {requests['s3fs']} requests, {theirs:.3f} s")
    print(f"ratio: {theirs / ours:.1f} x faster; {requests['stagecoach'] * 1000 / IMAGES:.0f} requests per 1,000 images (limit 50)")


def check(is_right: bool) -> None:
    if not is_right:
        raise SystemExit("the bodies differ")


def compare_digests(store: Store, what: str) -> None:
    size = 256 * MIB
    piece = os.urandom(8 * MIB)
    real = upload_module.Digest
    seconds: dict[type, list[float]] = {real: [], NoDigest: []}
    store.publish("warm-up", [piece] * 4)
    try:
        for _ in range(ROUNDS):
            for kind, taken in seconds.items():
                upload_module.Digest = kind  # type: ignore[misc, assignment]
                taken.append(timed(lambda: store.publish("big", [piece] * (size // len(piece)))))
    finally:
        upload_module.Digest = real  # type: ignore[misc]
    with_digest, without = statistics.median(seconds[real]), statistics.median(seconds[NoDigest])
    print(
        f"publish 256 MiB to {what}: {size / with_digest / 1e9:.2f} GB/s with digest, {size / without / 1e9:.2f} without; "
        f"wall time with / without = {with_digest / without:.3f} (limit 1.05)"
    )


def main() -> None:
    with s3_server() as server, bucket(server) as name:
        os.environ.update(server.environment)
        with FaultServer(server.url) as proxy:
            os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
            compare_ranges(open_store(f"s3://{name}/bench"), proxy)
        os.environ["AWS_ENDPOINT_URL_S3"] = server.url
        _report_publishing(server, name)


def _report_publishing(server: S3Server, name: str) -> None:
    with TemporaryDirectory() as folder:
        compare_digests(open_store(f"file://{Path(folder).resolve()}"), "file:// (fsync)")
    with TemporaryDirectory() as folder:
        compare_digests(open_store(f"file://{Path(folder).resolve()}", settings=StoreSettings(fsync=False)), "file:// (no fsync)")
    compare_digests(open_store(f"s3://{name}/bench"), "s3:// (moto)" if server.is_moto else "s3://")


if __name__ == "__main__":
    main()
