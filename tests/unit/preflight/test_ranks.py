"""What one rank does: meets the others without collectives, multiplies, looks at the disk, the bucket and its clock."""

import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from stagecoach.storage import open_store
from stagecoach_workloads.preflight.bucket import bucket_clock_skew, check_bucket
from stagecoach_workloads.preflight.measure import Matmul, disk_space, memory_space
from stagecoach_workloads.preflight.meeting import Dropped, Meeting


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returned, or the exception it raised."""
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def meetings(world_size: int, patience_s: float) -> list[Meeting]:
    store = HashStore()
    return [Meeting(store, rank=rank, world_size=world_size, patience_s=patience_s) for rank in range(world_size)]


def test_rank_0_gets_what_each_brought() -> None:
    ranks = meetings(3, 10)
    found = at_once(*(lambda rank=rank: rank.gather("hello", f"from {rank.rank}") for rank in ranks))
    assert found == [{0: "from 0", 1: "from 1", 2: "from 2"}, {}, {}]


def test_what_rank_0_tells_reaches_everyone() -> None:
    ranks = meetings(3, 10)
    assert at_once(*(lambda rank=rank: rank.tell("again", "yes" if rank.rank == 0 else "") for rank in ranks)) == ["yes"] * 3


def test_a_rank_that_does_not_come_is_missing_and_the_rest_go_on() -> None:
    ranks = meetings(3, 1.5)
    at_once(*(lambda rank=rank: rank.gather("first") for rank in ranks))
    at_once(*(lambda rank=rank: rank.gather("second") for rank in ranks[:2]))
    assert [rank.missing for rank in ranks[:2]] == [{2: "second"}] * 2
    started = time.monotonic()
    assert at_once(*(lambda rank=rank: rank.gather("third", "x") for rank in ranks[:2])) == [{0: "x", 1: "x"}, {}]
    assert time.monotonic() - started < 1.4  # nobody waits for it twice
    with pytest.raises(Dropped, match="rank 2 came to second"):
        ranks[2].gather("second")


def test_without_rank_0_the_others_end_with_a_sentence() -> None:
    ranks = meetings(2, 0.1)
    with pytest.raises(TimeoutError, match=r"rank 0 did not come through hello within 0\.3 s"):
        ranks[1].gather("hello")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As ranks do: threads that wait for each other on a busy machine would be measured instead of the core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_matmul_gives_a_rate_and_finds_a_device_that_computes_wrongly() -> None:
    matmul = Matmul(torch.device("cpu"), 128)
    assert matmul.measure(0.02).gflops > 0.1
    matmul.first[3, 3] += 1  # as if the first product had come out otherwise
    with pytest.raises(RuntimeError, match="two different products"):
        matmul.measure(0.02)


def test_memory_and_disk_are_this_machines(tmp_path: Path) -> None:
    memory, disk = memory_space(), disk_space(tmp_path)
    assert 0 < memory.free_gb <= memory.total_gb
    assert 0 < disk.free_gb <= disk.total_gb
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        disk_space(tmp_path / "gone")


def test_ranks_race_for_one_key_and_leave_nothing_else(tmp_path: Path) -> None:
    uri = f"{tmp_path.as_uri()}/check"
    found = at_once(*(lambda rank=rank: check_bucket(uri, rank=rank, megabytes=0.1, deadline_s=10) for rank in range(4)))
    assert sorted(report.created for report in found) == [False, False, False, True]
    assert all(report.write_mb_s > 0 and report.read_mb_s > 0 for report in found)
    assert [info.key for info in open_store(uri).list()] == ["winner"]


class _Late(BaseHTTPRequestHandler):
    """A server whose clock is 100 s behind."""

    def do_HEAD(self) -> None:  # the name http.server calls
        self.send_response_only(403)
        self.send_header("Date", formatdate(time.time() - 100, usegmt=True))
        self.end_headers()


@pytest.fixture
def late_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Late)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_buckets_clock_is_read_from_any_answer(late_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", late_server)
    assert bucket_clock_skew("s3://bucket/x") == pytest.approx(100, abs=1.5)
    assert bucket_clock_skew("file:///tmp/x") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert bucket_clock_skew("s3://bucket/x") is None
