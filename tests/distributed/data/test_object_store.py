"""The whole way over an S3 server: made, indexed, planned, streamed; what the store's failures become; a writer killed for good."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stagecoach.constants import ExitCode
from stagecoach.errors import DataError, StagecoachError
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach.storage import StoreSettings, open_store
from stagecoach.testing.fault_server import FaultServer
from stagecoach.testing.s3_server import S3Server, bucket, s3_server
from stagecoach_workloads.cli.data import data_group
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.made.corpus import DATASETS, MakeJob, make_corpus
from stagecoach_workloads.data.plan.open import OpenData, open_data
from stagecoach_workloads.data.verify import verify_dataset
from stagecoach_workloads.data.work.fetch import FetchSettings, Origin
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.data.work.quarantine import QuarantineBudget
from stagecoach_workloads.data.writer import WriteSettings, write_dataset
from stagecoach_workloads.testing.collated import gathered, row_hashes

STAGE = mm1_tiny().stages[0]
NAMES = ("captions", "captions_synthetic", "interleaved", "text")
STEPS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def remote(server: S3Server) -> Iterator[str]:
    """A tiny corpus in a bucket, made there."""
    with pytest.MonkeyPatch.context() as patch, bucket(server) as name:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        uri = f"s3://{name}/{uuid.uuid4().hex[:8]}"
        make_corpus(uri, profile="tiny", only=NAMES)
        yield uri


@pytest.fixture
def faulty(server: S3Server, remote: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    with FaultServer(server.url) as proxy:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def reachable(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("reachable")
def test_a_corpus_in_a_bucket_streams_as_the_one_on_disk_does(remote: str, corpus: str) -> None:
    local = gathered(STAGE, corpus, ranks=1, workers=0, stop=STEPS)
    assert gathered(STAGE, remote, ranks=1, workers=0, stop=STEPS) == local
    assert gathered(STAGE, remote, ranks=2, workers=1, stop=STEPS) == local  # worker processes open their own connections


@pytest.mark.usefixtures("reachable")
def test_verify_and_index_work_in_a_bucket(remote: str) -> None:
    uri = f"{remote}/captions/train"
    store = open_store(uri)
    assert verify_dataset(store) == []
    part, shard = open_dataset(uri).manifest.parts[0].key, open_dataset(uri).manifest.shards[0].key
    good, index = store.read(shard), store.read(part)
    try:
        store.publish(shard, good[:3000] + bytes([good[3000] ^ 1]) + good[3001:])  # the store itself digests the new body
        damage = verify_dataset(store)
        assert [item.sample for item in damage] == [open_dataset(uri).index.row(1 if open_dataset(uri).index.offset[1] <= 3000 else 0).key]
    finally:
        store.publish(shard, good)
    store.delete(part)
    run = CliRunner().invoke(data_group, ["index", uri])
    assert run.exit_code == 0, run.output
    assert store.read(part) == index


def impatient(data: OpenData, workers: int) -> StepLoader:
    """A loader whose stores give up after two seconds instead of three minutes."""
    loader = StepLoader(data, stop=200, settings=WorkSettings(workers=workers, prefetch=1))
    return with_stores(loader, deadline_s=2.0, read_timeout_s=1.0, backoff_cap_s=0.5)


def with_stores(loader: StepLoader, **settings: Any) -> StepLoader:
    """The loader, with stores of these settings."""
    stores = StoreSettings(**settings)
    loader.work.origins = [Origin(open_store(origin.store.uri, settings=stores), origin.fingerprint) for origin in loader.work.origins]
    return loader


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_stays_away_ends_the_attempt_with_75_and_pads_nothing(workers: int, faulty: FaultServer, remote: str) -> None:
    data = open_data(STAGE, data=remote)  # the indexes are open; from here on the store refuses everything
    faulty.faults.refuse_while = lambda: True
    with pytest.raises(StagecoachError, match="s3://") as raised:
        next(iter(impatient(data, workers)))
    assert raised.value.exit_code == ExitCode.RETRY


def test_bad_samples_summed_over_ranks_stop_all_of_them_at_the_same_step(corpus: str, tmp_path: Path) -> None:
    """Each rank's own counts would stop at different steps, or never; their sums, which every rank adds, stop all at one."""
    folder = tmp_path / "corpus"
    subprocess.run(["cp", "-r", corpus.removeprefix("file://"), str(folder)], check=True)
    dataset = open_dataset(f"file://{folder}/captions/train")
    for number in range(0, len(dataset), 40):
        row = dataset.index.row(number)
        path = folder / "captions/train" / dataset.manifest.shards[row.shard].key
        body = bytearray(path.read_bytes())
        body[row.offset + row.length // 2] ^= 1
        path.write_bytes(body)
    ranks = 3
    loaders = [
        iter(StepLoader(open_data(STAGE, data=f"file://{folder}"), rank=r, world_size=ranks, stop=40, settings=WorkSettings(workers=0)))
        for r in range(ranks)
    ]
    said = ""
    budgets, stopped = [QuarantineBudget(share=0.005) for _ in range(ranks)], [-1] * ranks
    for step, loaded in enumerate(zip(*loaders, strict=True)):
        bad, seen = sum(len(one.bad) for one in loaded), sum(one.num_samples for one in loaded)  # the all-reduce of the trainer
        for rank, budget in enumerate(budgets):
            try:
                budget.add(bad=bad, seen=seen, step=step, lines=loaded[rank].bad)
            except DataError as error:
                stopped[rank], said = step, str(error)
        if max(stopped) >= 0:
            break
    assert len(set(stopped)) == 1
    assert stopped[0] > 0
    assert "samples are bad" in said
    assert DataError.exit_code == ExitCode.BAD_DATA


def fresh_reads(data: OpenData, steps: int, **settings: Any) -> StepLoader:
    """A loader that asks the store anew for every block: a tiny corpus would stay in memory. Nothing is loaded ahead."""
    work = WorkSettings(workers=0, prefetch=0, fetch=FetchSettings(read="blocks", memory_bytes=1))
    return with_stores(StepLoader(data, stop=steps, settings=work), **settings)


def seconds_of_steps(loader: StepLoader, faulty: FaultServer, *, usual: int) -> tuple[list[float], int, int]:
    """How long each step took to load once the first `usual` steps are over and some answers come 2 s late; the blocks that these steps
    needed, and the requests for them."""
    waits: list[float] = []
    fetched = loader.work.parts()[0].counts
    needed, begun = 0, time.monotonic()
    for step in loader:
        waits.append(time.monotonic() - begun)
        if step.step == usual:
            waits.clear()
            faulty.clear()
            needed = fetched.requests
            faulty.faults.slow_share, faulty.faults.slow_s = 0.03, 2.0
        begun = time.monotonic()
    return waits, fetched.requests - needed, faulty.count("GET")


def test_slow_reads_of_the_loader_are_hedged_within_five_percent(faulty: FaultServer, remote: str) -> None:
    data = open_data(STAGE, data=remote)
    waits, needed, asked = seconds_of_steps(fresh_reads(data, 50), faulty, usual=15)
    assert needed > 200
    assert asked <= 1.05 * needed + 7  # what the 15 usual steps, of some nine requests each, left unspent
    assert sum(wait > 1.9 for wait in waits) <= 1  # only when both of two are slow
    faulty.faults.slow_share = 0.0
    time.sleep(faulty.faults.slow_s)  # the late answers that nobody waited for are counted when they are given
    unhedged, needed, asked = seconds_of_steps(fresh_reads(data, 35, hedge=False), faulty, usual=5)
    assert asked <= needed + 3  # a connection may break
    assert sum(wait > 1.9 for wait in unhedged) >= 3  # or hedging would prove nothing


def test_on_a_slow_line_the_loader_takes_its_time_and_pads_nothing(faulty: FaultServer, remote: str, corpus: str) -> None:
    """The reads of a step take longer than the store's deadline, but it is never silent for so long."""
    data = open_data(STAGE, data=remote)
    loader = fresh_reads(data, 2, deadline_s=2.0, read_timeout_s=2.0)
    faulty.clear()
    faulty.faults.bytes_per_s = 400_000
    begun = time.monotonic()
    steps = list(loader)
    spent = time.monotonic() - begun
    assert [line for step in steps for line in step.bad] == []
    local = list(StepLoader(open_data(STAGE, data=corpus), stop=2, settings=WorkSettings(workers=0)))
    assert [row_hashes(batch) for step in steps for batch in step.batches] == [
        row_hashes(batch) for step in local for batch in step.batches
    ]
    assert spent > 0.9 * loader.work.parts()[0].counts.bytes / 400_000 > 2 * 2.0


_WRITER = """
import sys, time
from stagecoach.storage import open_store
from stagecoach_workloads.data.made.corpus import DATASETS, MakeJob
from stagecoach_workloads.data.writer import WriteSettings, write_dataset
settings = WriteSettings(kind=DATASETS["captions"][0], recipe={}, licence="", made_by="t", shard_bytes=8_000)
def told(done, units):
    print(done, flush=True)
    time.sleep(float(sys.argv[2]))
if __name__ == "__main__":
    write_dataset(open_store(sys.argv[1]), settings, units=5, job=MakeJob("tiny", "captions", "test", 0), on_unit=told)
"""


def test_a_writer_killed_with_sigkill_again_and_again_ends_with_the_same_dataset(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    settings = WriteSettings(kind=DATASETS["captions"][0], recipe={}, licence="", made_by="t", shard_bytes=8_000)
    whole = write_dataset(open_store(f"file://{tmp_path}/whole"), settings, units=5, job=MakeJob("tiny", "captions", "test", 0))
    uri = f"file://{tmp_path}/killed"
    for unit in (1, 2, 4):
        child = subprocess.Popen([sys.executable, str(script), uri, "0.3"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        while int(child.stdout.readline()) < unit:
            pass
        time.sleep(0.3 + 0.01 * unit)  # somewhere within the next unit
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with pytest.raises(DataError, match="unfinished dataset stands here"):
            open_dataset(uri)
    done: list[int] = []
    again = write_dataset(
        open_store(uri), settings, units=5, job=MakeJob("tiny", "captions", "test", 0), on_unit=lambda units, _of: done.append(units)
    )
    assert done[0] >= 4  # what was finished before the last kill was not made again
    assert again == whole
    assert verify_dataset(open_store(uri)) == []
