"""From a rank's pipe to segments: nothing waits for a bucket, nothing secret gets there, and what is lost is said."""

import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from stagecoach.contract.ledger import JobFolder
from stagecoach.storage.errors import StoreUnavailable
from stagecoach.supervisor.logs import SEGMENT_BYTES, PipeReader, SegmentWriter, Shipper, open_fifo
from stagecoach_workloads.events import MAX_LINE_BYTES, MAX_WAITING, EventPipe


class FailingJob(JobFolder):
    """A bucket that does not take segments until `works` is set."""

    works = threading.Event()

    def write_segment(self, kind: str, attempt: int, source: str, segment: int, body: bytes) -> None:
        if not self.works.is_set():
            raise StoreUnavailable("503 for two minutes")
        super().write_segment(kind, attempt, source, segment, body)


def open_job(kind: type[JobFolder] = JobFolder) -> JobFolder:
    return kind.open(f"memory://{uuid.uuid4().hex}/job")


def test_segments_are_cut_by_size_and_by_age() -> None:
    job = open_job()
    shipper = Shipper(job)
    writer = SegmentWriter(shipper, "logs", 1, "rank-0")
    writer.tick(time.monotonic() + 100)  # nothing waits: nothing is cut
    writer.add("young\n")
    writer.tick(time.monotonic() + 14)
    assert shipper.flush(5)
    assert job.segments("logs", 1, "rank-0") == []
    writer.tick(time.monotonic() + 15)
    for _ in range(3):
        writer.add("x" * (SEGMENT_BYTES // 2) + "\n")
    writer.cut()
    assert shipper.flush(5)
    assert [len(job.store.read(key)) for key in job.segments("logs", 1, "rank-0")] == [6, SEGMENT_BYTES + 2, SEGMENT_BYTES // 2 + 1]


def test_a_failing_bucket_blocks_nobody_and_lost_lines_are_counted() -> None:
    job = open_job(FailingJob)
    shipper = Shipper(job, buffer_bytes=3000)
    writer = SegmentWriter(shipper, "logs", 1, "rank-0")
    started = time.monotonic()
    for number in range(10):
        writer.add(f"{number}" * 999 + "\n")
        writer.cut()
    assert time.monotonic() - started < 5
    assert not shipper.flush(0.1)
    FailingJob.works.set()
    assert shipper.flush(10)
    writer.add("after\n")
    writer.cut()
    assert shipper.flush(5)
    lines = list(job.lines("logs", 1, "rank-0"))
    assert [line[0] for line in lines] == ["0", "1", "2", "[", "a"]
    assert lines[3] == "[7 lines dropped: the bucket did not take them in time]"


def test_a_pipe_gives_whole_lines_without_secrets(tmp_path: Path) -> None:
    heard: list[str] = []
    reader = PipeReader(open_fifo(tmp_path / "fifo"), heard.append)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    for piece in (b"one\ntwo pass", b"word=hunter2hunter2\nthr", b"ee \xff", b"\xc3\xa9"):
        os.write(writer, piece)
        reader.read()
    reader.finish()
    assert "".join(heard) == "one\ntwo password=***\nthree \ufffdé\n"


def test_a_line_without_an_end_does_not_grow_for_ever(tmp_path: Path) -> None:
    heard: list[str] = []
    reader = PipeReader(open_fifo(tmp_path / "fifo"), heard.append)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    for _ in range(20):
        os.write(writer, b"x" * 60_000)
        reader.read(everything=True)
    reader.finish()
    assert sum(len(text.rstrip("\n")) for text in heard) == 1_200_000
    assert max(map(len, heard)) < 400_000


def read_to_the_end(fifo: int, pipe: EventPipe) -> list[dict[str, Any]]:
    """All events of a pipe that is closed meanwhile."""
    lines: list[str] = []
    reader = PipeReader(fifo, lines.append)
    closing = threading.Thread(target=pipe.close)
    closing.start()
    while closing.is_alive():
        reader.read(everything=True)
    reader.finish()
    return [json.loads(line) for text in lines for line in text.splitlines()]


def test_events_that_nobody_reads_are_dropped_and_counted(tmp_path: Path) -> None:
    fifo = open_fifo(tmp_path / "events")
    pipe = EventPipe(tmp_path / "events")
    for number in range(MAX_WAITING + 5000):
        pipe.write({"step": number, "name": "loss", "value": "y" * 100})
    events = read_to_the_end(fifo, pipe)
    dropped = sum(event["value"] for event in events if event["name"] == "events_dropped")
    assert dropped > 0
    assert len([event for event in events if event["name"] == "loss"]) + dropped == MAX_WAITING + 5000


def test_a_line_longer_than_the_pipe_has_room_for_goes_in_parts_and_comes_whole(tmp_path: Path) -> None:
    """The ids of a batch, or the losses of hundreds of categories: more than the kernel takes at once, and a pipe that is nearly full."""
    fifo = open_fifo(tmp_path / "events")
    pipe = EventPipe(tmp_path / "events")
    sent = [{"step": number, "name": "skipped", "value": {"sample_ids": ["x" * 1000] * 40}} for number in range(5)]
    for event in sent:
        pipe.write(event)  # the pipe holds 64 KiB: the second is cut
    pipe.write({"name": "too long", "value": "y" * MAX_LINE_BYTES})
    events = read_to_the_end(fifo, pipe)
    assert [event for event in events if event["name"] == "skipped"] == sent
    assert [event["value"] for event in events if event["name"] == "events_dropped"] == [1]
    assert len(events) == 6
