"""One per cent of bad samples (F52): two ranks and one leave out the same samples, pad the same positions and stop at the same step."""

import json
import multiprocessing
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from torch.distributed import FileStore

from stagecoach.constants import ExitCode
from stagecoach.errors import DataError
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.data.work.quarantine import QuarantineBudget, quarantine_lines
from stagecoach_workloads.testing.collated import row_hashes
from stagecoach_workloads.train.agreement import Totals, agree, gather_bad
from stagecoach_workloads.train.loop import totals_of

SPAWN = multiprocessing.get_context("spawn")
STAGE = mm1_tiny().stages[0]
STEPS, TIGHT = 40, 0.004  # the whole run, and a budget that less than all of it is over


@dataclass(frozen=True)
class Said:
    """What one rank has at the end. `rows` (hashes) and `padded` (positions) are its own, the rest must be every rank's."""

    rank: int
    log: str
    sums: list[tuple[int, int]]  # bad and seen samples, step by step
    stopped_at: int
    says: str
    code: int
    rows: list[str]
    padded: int


def run_rank(rank: int, ranks: int, corpus: str, meeting: str, told: "Queue[str]") -> None:
    """Loads, agrees and counts as the trainer does. Over budget it notes what would end it, and goes on."""
    dist.init_process_group("gloo", store=FileStore(meeting, ranks), rank=rank, world_size=ranks)
    budget, bad, sums, rows, padded = QuarantineBudget(share=TIGHT), [], [], [], 0
    stopped_at, says, code = -1, "", 0
    for step in StepLoader(open_data(STAGE, data=corpus), rank=rank, world_size=ranks, stop=STEPS, settings=WorkSettings(workers=0)):
        bad += step.bad
        totals = agree(totals_of(step.batches, len(step.bad), Totals()))
        sums.append((totals.bad, totals.samples))
        rows += [row for batch in step.batches for row in row_hashes(batch)]
        padded += sum(int((batch.document_ids_BT < 0).sum()) for batch in step.batches)
        if stopped_at >= 0:
            continue
        lines = gather_bad(bad) if budget.is_over(bad=totals.bad, seen=totals.samples) else []
        try:
            budget.add(bad=totals.bad, seen=totals.samples, step=step.step, lines=lines)
        except DataError as error:
            stopped_at, says, code = step.step, str(error), int(error.exit_code)
    log = quarantine_lines(gather_bad(bad)).decode()
    told.put(json.dumps(asdict(Said(rank, log, sums, stopped_at, says, code, rows, padded))))
    dist.destroy_process_group()


def run(worlds: tuple[int, ...], corpus: str, folder: Path) -> dict[int, list[Said]]:
    """By number of ranks what each of them said. All start at once: most of their time is imports."""
    told = {ranks: SPAWN.Queue() for ranks in worlds}
    started = [
        SPAWN.Process(target=run_rank, args=(rank, ranks, corpus, str(folder / f"meeting-{ranks}"), told[ranks]))
        for ranks in worlds
        for rank in range(ranks)
    ]
    for process in started:
        process.start()
    try:
        found = {ranks: [Said(**json.loads(told[ranks].get(timeout=120))) for _ in range(ranks)] for ranks in worlds}
    finally:
        for process in started:
            process.join(30)
            process.kill()
    return {ranks: sorted(said, key=lambda one: one.rank) for ranks, said in found.items()}


@pytest.fixture(scope="module")
def damaged(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The corpus with every 100th sample of each dataset flipped in one bit."""
    folder = tmp_path_factory.mktemp("damaged") / "corpus"
    shutil.copytree(corpus.removeprefix("file://"), folder)
    for root in (folder / name / "train" for name in ("captions", "captions_synthetic", "interleaved", "text")):
        held = open_dataset(root.as_uri())
        for row in (held.index.row(number) for number in range(7, len(held), 100)):
            path = root / held.manifest.shards[row.shard].key
            body = np.fromfile(path, np.uint8)
            body[row.offset + row.length // 2] ^= 1
            body.tofile(path)
    return folder.as_uri()


@pytest.fixture(scope="module")
def worlds(damaged: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Said]]:
    return run((1, 2), damaged, tmp_path_factory.mktemp("ranks"))


def test_the_log_and_the_padding_of_two_ranks_are_those_of_one(worlds: dict[int, list[Said]]) -> None:
    (alone,), two = worlds[1], worlds[2]
    lines = [json.loads(line) for line in alone.log.splitlines()]
    bad, seen = (sum(counts) for counts in zip(*alone.sums, strict=True))
    assert 0.002 < bad / seen < 0.03
    assert 20 < len(lines) <= bad  # a document that was split is one line of its step
    assert [said.log for said in two] == [alone.log] * 2
    assert [said.sums for said in two] == [alone.sums] * 2
    assert len(alone.sums) == STEPS
    assert all(said.rows for said in two)
    assert Counter(two[0].rows + two[1].rows) == Counter(alone.rows)  # padding stands where it was planned, to the position
    assert two[0].padded + two[1].padded == alone.padded


def test_over_budget_two_ranks_stop_where_one_does_and_say_the_same(worlds: dict[int, list[Said]]) -> None:
    (alone,), two = worlds[1], worlds[2]
    assert 0 < alone.stopped_at < STEPS - 1
    assert [(said.stopped_at, said.code) for said in two] == [(alone.stopped_at, ExitCode.BAD_DATA)] * 2
    assert [said.says for said in two] == [alone.says] * 2
    before = [json.loads(line) for line in alone.log.splitlines() if json.loads(line)["step"] <= alone.stopped_at]
    assert before
    assert all(line["sample"] in alone.says for line in before)
