"""Several ranks against one: gradients, loss curves, meshes, rows that do not divide."""

import json
import subprocess
import sys
from collections.abc import Sequence
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
    "experts": (("model.decoder.moe.every=2", "model.decoder.moe.experts=4", "loss.z_loss=1e-4"), 3, False),
    "copies": (("layout.dp_replicate=2", "layout.ranks_per_node=4"), 50, False),
}


def trained(folder: Path, corpus: str, ranks: int, names: Sequence[str]) -> dict[str, Trained]:
    """Rank 0's reports of so many ranks, started once for all orders."""
    orders = {}
    for name in names:
        settings, steps, fp64 = ORDERS[name]
        orders[name] = {"plan": to_plain(toy_stage(corpus, settings)), "steps": steps, "fp64": fp64}
    arguments = [str(ranks), str(folder / "store"), json.dumps(orders), str(folder)]
    processes = [subprocess.Popen([*RANK, str(rank), *arguments], stderr=subprocess.PIPE, text=True) for rank in range(ranks)]
    try:
        errors = [process.communicate(timeout=280)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)
    return {
        name: Trained(
            **json.loads((folder / f"{name}.json").read_text()), gradients=torch.load(folder / f"{name}.gradients", weights_only=True)
        )
        for name in names
    }


def furthest(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def worst_gradient(one: Trained, other: Trained) -> float:
    assert one.gradients.keys() == other.gradients.keys()
    return max(float((one.gradients[name] - other.gradients[name]).abs().max()) for name in one.gradients)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> dict[str, Trained]:
    names = ("plain", "double", "five_rows", "three_rows", "full", "selective", "once")
    return trained(tmp_path_factory.mktemp("one"), corpus, 1, names)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> dict[str, Trained]:
    return trained(tmp_path_factory.mktemp("two"), corpus, 2, ("plain", "double", "five_rows", "three_rows", "once", "again", "experts"))


def check_same_curve(several: Trained, alone: Trained) -> None:
    assert worst_gradient(several, alone) < 1e-6
    assert furthest(several.losses[:10], alone.losses[:10]) < 1e-5
    assert furthest(several.losses, alone.losses) < 1e-3
    assert several.by_label.keys() == alone.by_label.keys()
    assert alone.losses[-1] < alone.losses[0] - 0.2  # something was learned, or equal curves would prove little


def test_two_ranks_equal_one(one: dict[str, Trained], two: dict[str, Trained]) -> None:
    check_same_curve(two["plain"], one["plain"])


def test_two_copies_of_two_shards_equal_one_rank(tmp_path: Path, corpus: str, one: dict[str, Trained]) -> None:
    check_same_curve(trained(tmp_path, corpus, 4, ["copies"])["copies"], one["plain"])


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


def test_the_same_seed_twice_gives_the_same_bits(two: dict[str, Trained]) -> None:
    assert (two["once"].digest, two["once"].losses) == (two["again"].digest, two["again"].losses)
