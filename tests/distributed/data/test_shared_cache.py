"""One cache folder between the processes of a node: a block that several miss at the same moment is read once, whoever is killed."""

import multiprocessing
import os
import signal
import time
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from stagecoach.recipes.tiny import mm1_tiny
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.cache import BlockCache
from stagecoach_workloads.data.work.fetch import Fetcher, FetchSettings, Origin
from stagecoach_workloads.data.work.tasks import Document, TaskMaker

SPAWN = multiprocessing.get_context("spawn")
PROCESSES = 4


def documents_of(corpus: str) -> tuple[list[Origin], list[Document]]:
    data = open_data(mm1_tiny().stages[0], data=corpus)
    tasks = TaskMaker(data.datasets, data.layouts)
    found = []
    for step in range(4):
        rows = data.plan.batch(step)
        found += [document for row in tasks.tasks(step, rows, [list(range(len(rows)))])[0].rows for document in row]
    return [Origin(dataset.store, dataset.manifest.fingerprint) for dataset in data.datasets], found


class SlowFetcher(Fetcher):
    """Of a store that takes its time, so that all miss what all want."""

    def _ask_for(self, origin: Origin, document: Document) -> bytes:
        time.sleep(0.1)
        return super()._ask_for(origin, document)


def fetch_all(corpus: str, folder: str, together: Barrier, told: "Queue[tuple[int, int, int]]") -> None:
    """A rank's reading."""
    origins, documents = documents_of(corpus)
    fetcher = SlowFetcher(origins, FetchSettings(read="blocks", cache_folder=folder))
    together.wait(60)
    bodies = fetcher.fetch(documents)
    damaged = sum(isinstance(body, Exception) for body in bodies)
    told.put((fetcher.counts.requests, fetcher.counts.cache_hits, damaged))
    fetcher.close()


def test_four_processes_that_miss_together_read_each_block_once(corpus: str, tmp_path: Path) -> None:
    _, documents = documents_of(corpus)
    blocks = {(document.source, document.stretch.shard, document.block) for document in documents}
    together, told = SPAWN.Barrier(PROCESSES), SPAWN.Queue()
    ranks = [SPAWN.Process(target=fetch_all, args=(corpus, str(tmp_path), together, told)) for _ in range(PROCESSES)]
    for rank in ranks:
        rank.start()
    counts = [told.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert [damaged for _, _, damaged in counts] == [0] * PROCESSES
    assert sum(requests for requests, _, _ in counts) == len(blocks) > 3
    assert sum(hits for _, hits, _ in counts) == (PROCESSES - 1) * len(blocks)


def hold(folder: str, held: Event) -> None:
    with BlockCache(Path(folder), max_bytes=1 << 20).turn("block"):
        held.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> SpawnProcess:
    """A process that has the block's turn and does not end."""
    held = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(str(tmp_path), held))
    process.start()
    assert held.wait(60)
    return process


def test_the_turn_of_a_killed_process_is_free_and_a_stuck_one_is_waited_for_a_bounded_time(holder: SpawnProcess, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=1 << 20)
    begun = time.monotonic()
    with cache.turn("block", wait_s=0.5):
        stuck_s = time.monotonic() - begun
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    begun = time.monotonic()
    with cache.turn("block", wait_s=60):
        freed_s = time.monotonic() - begun
    assert stuck_s >= 0.5
    assert freed_s < 30
    for number in range(40):
        cache.write(f"b{number}", bytes(40_000))
    assert (tmp_path / "locks").is_dir()  # trimming leaves the locks alone
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= 1 << 20
