"""Several ranks against one: gradients, loss curves, meshes, rows that do not divide."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stagecoach.contract.records import to_plain
from stagecoach.testing.training import toy_stage

RANK = [sys.executable, "-m", "stagecoach_workloads.testing.curves"]


@dataclass
class Trained:
    losses: list[float]
    by_label: dict[str, float]
    grad_norm: float
    digest: str
    gradients: dict[str, Tensor]


ORDERS: dict[str, tuple[tuple[str, ...], int, bool]] = {  # settings, steps, double precision
    "plain": ((), 50, False),
    "again": ((), 5, False),
    "double": ((), 50, True),
    "five_rows": (("batch.size=5", "layout.microbatch_rows=2"), 3, False),  # two microsteps, the last with one row for two ranks
    "three_rows": (("batch.size=3", "layout.microbatch_rows=1"), 3, False),
    "full": (("layout.activation_checkpointing=full",), 5, False),
    "selective": (("layout.activation_checkpointing=selective",), 5, False),
    "once": ((), 5, False),
    "compiled": (("layout.compile=true", "layout.activation_checkpointing=selective"), 5, False),
    "experts": (("model.decoder.moe.every=2", "model.decoder.moe.experts=4", "loss.z_loss=1e-4"), 3, False),
    "copies": (("layout.dp_replicate=2", "layout.ranks_per_node=4"), 50, False),
}


NAMES = {  # of orders, by number of ranks
    1: ("plain", "double", "five_rows", "three_rows", "full", "selective", "once"),
    2: ("plain", "double", "five_rows", "three_rows", "once", "again", "experts", "compiled"),
    4: ("copies",),
}
Worlds = dict[int, dict[str, Trained]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Worlds:
    """Rank 0's reports, by number of ranks and order. All start at once: most of their time is imports, and waiting for each other."""
    folders = {ranks: tmp_path_factory.mktemp(f"ranks-{ranks}") for ranks in NAMES}
    processes = {ranks: start(folder, corpus, ranks) for ranks, folder in folders.items()}
    try:
        for started in processes.values():
            errors = [process.communicate(timeout=280)[1] for process in started]
            assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)
    finally:
        for process in (process for started in processes.values() for process in started):
            process.kill()
    return {ranks: {name: report(folder, name) for name in NAMES[ranks]} for ranks, folder in folders.items()}


def start(folder: Path, corpus: str, ranks: int) -> "list[subprocess.Popen[str]]":
    """So many ranks, for all their orders."""
    orders = {}
    for name in NAMES[ranks]:
        settings, steps, fp64 = ORDERS[name]
        orders[name] = {"plan": to_plain(toy_stage(corpus, settings)), "steps": steps, "fp64": fp64}
    arguments = [str(ranks), str(folder / "store"), json.dumps(orders), str(folder)]
    return [subprocess.Popen([*RANK, str(rank), *arguments], stderr=subprocess.PIPE, text=True) for rank in range(ranks)]


def report(folder: Path, name: str) -> Trained:
    gradients = torch.load(folder / f"{name}.gradients", weights_only=True)
    return Trained(**json.loads((folder / f"{name}.json").read_text()), gradients=gradients)


def furthest(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def worst_gradient(one: Trained, other: Trained) -> float:
    assert one.gradients.keys() == other.gradients.keys()
    return max(float((one.gradients[name] - other.gradients[name]).abs().max()) for name in one.gradients)


@pytest.fixture
def one(worlds: Worlds) -> dict[str, Trained]:
    return worlds[1]


@pytest.fixture
def two(worlds: Worlds) -> dict[str, Trained]:
    return worlds[2]


def check_same_curve(several: Trained, alone: Trained) -> None:
    assert worst_gradient(several, alone) < 1e-6
    assert furthest(several.losses[:10], alone.losses[:10]) < 1e-5
    assert furthest(several.losses, alone.losses) < 1e-3
    assert several.by_label.keys() == alone.by_label.keys()
    assert alone.losses[-1] < alone.losses[0] - 0.2  # something was learned, or equal curves would prove little


def test_two_ranks_equal_one(one: dict[str, Trained], two: dict[str, Trained]) -> None:
    check_same_curve(two["plain"], one["plain"])


def test_two_copies_of_two_shards_equal_one_rank(worlds: Worlds) -> None:
    check_same_curve(worlds[4]["copies"], worlds[1]["plain"])


def test_in_double_precision_two_ranks_and_one_are_the_same_curve(one: dict[str, Trained], two: dict[str, Trained]) -> None:
    assert furthest(two["double"].losses, one["double"].losses) < 1e-9
    assert two["double"].grad_norm == pytest.approx(one["double"].grad_norm, rel=1e-9)


def test_losses_beside_the_cross_entropy_are_told(two: dict[str, Trained]) -> None:
    """Of routers, for an even load and small logits, and of the softmax; they are part of the loss."""
    told = two["experts"].by_label
    assert told.keys() == two["plain"].by_label.keys() | {"z", "router_load_balance", "router_z"}
    assert min(told["z"], told["router_load_balance"], told["router_z"]) > 0
    kinds = [loss for name, loss in told.items() if name.startswith("kind/")]
    assert min(kinds) < two["experts"].losses[-1] < max(kinds) + 1


@pytest.mark.parametrize("name", ["five_rows", "three_rows"])
def test_rows_that_do_not_divide_are_dealt_without_loss(name: str, one: dict[str, Trained], two: dict[str, Trained]) -> None:
    assert worst_gradient(two[name], one[name]) < 1e-6
    assert furthest(two[name].losses, one[name].losses) < 1e-5


@pytest.mark.parametrize("name", ["full", "selective"])
def test_recomputing_changes_no_bit(name: str, one: dict[str, Trained]) -> None:
    assert one[name].digest == one["once"].digest


def test_blocks_that_are_compiled_learn_the_same(two: dict[str, Trained]) -> None:
    """Each block by itself, inside of sharding, with recomputing."""
    assert worst_gradient(two["compiled"], two["once"]) < 1e-6
    assert furthest(two["compiled"].losses, two["once"].losses) < 1e-5


def test_the_same_seed_twice_gives_the_same_bits(two: dict[str, Trained]) -> None:
    assert (two["once"].digest, two["once"].losses) == (two["again"].digest, two["again"].losses)
