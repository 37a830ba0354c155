"""Optimizers, clipping and the comparison of replicas on real gloo processes: five runs, whose findings the tests share."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Found = dict[str, Any]
KINDS = ["adamw", "adafactor", "muon"]
WHOLE = " ".join(f"equals_whole,{kind},1" for kind in KINDS)
ONE, TWO = [" ".join(f"{part},{kind}" for kind in KINDS) for part in ("part_one", "part_two")]

# Each run saves after three steps; the next one, on another number of ranks, loads that and goes on.
RUNS = {
    "4": f"{ONE} {WHOLE} equals_whole,adamw,2 equals_whole,adafactor,2 equals_whole,muon,2 "
    "passes_on,nan,1 passes_on,inf,1 passes_on,nan,2 flips,adamw,1,2 flips,adamw,2,50",
    "2 after 4": f"{TWO} {ONE} {WHOLE}",
    "3 after 2": f"{TWO} {ONE} flips,adafactor,3,50",
    "1 after 3": f"{TWO} {ONE} {WHOLE}",
    "4 after 1": TWO,
}


def run_ranks(cases: str, world: int, store: Path) -> Found:
    """What rank 0 found, by case."""
    script = Path(__file__).parent / "ranks.py"
    commands = [[sys.executable, str(script), cases, str(number), str(world), str(store), str(store.parent)] for number in range(world)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(error for _, error in outputs)
    found: Found = json.loads(outputs[0][0].splitlines()[-1])
    return found


class Runs:
    """Findings by run; a run is made when it is first asked for, after the one whose state it loads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._found = folder, dict[str, Found]()

    def __getitem__(self, name: str) -> Found:
        for place, run in enumerate(list(RUNS)[: list(RUNS).index(name) + 1]):
            if run not in self._found:
                self._found[run] = run_ranks(RUNS[run], int(run.split()[0]), self._folder / f"store-{place}")
        return self._found[name]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("run", "copies"), [("4", 1), ("4", 2), ("2 after 4", 1), ("1 after 3", 1)])
def test_sharded_optimizers_and_clipping_equal_the_whole_ones(found: Runs, run: str, copies: int, kind: str) -> None:
    """Uneven and empty shards, stacked experts, a replicated parameter beside sharded ones; on four ranks also two copies of two shards."""
    differences = found[run][f"equals_whole,{kind},{copies}"]
    assert set(differences) == {"weights", "state", "norms", "torch_norm"}
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["2 after 4", "3 after 2", "1 after 3", "4 after 1"])
def test_state_of_any_number_of_ranks_loads_into_any_other(found: Runs, run: str, kind: str) -> None:
    """Three steps there and three here equal six on one rank."""
    after = found[run][f"part_two,{kind}"]
    assert after["weights"] < 1e-6
    assert after["state"] < 1e-6
    assert after["steps_taken"] == 6


def test_what_is_not_finite_on_one_rank_is_seen_by_all(found: Runs) -> None:
    for case in ("passes_on,nan,1", "passes_on,nan,2"):
        assert [math.isnan(float(norm)) for norm in found["4"][case]["norms"]] == [True] * 4
    assert [float(norm) for norm in found["4"]["passes_on,inf,1"]["norms"]] == [math.inf] * 4


@pytest.mark.parametrize(("run", "case"), [("4", "flips,adamw,1,2"), ("4", "flips,adamw,2,50"), ("3 after 2", "flips,adafactor,3,50")])
def test_fifty_good_steps_raise_no_alarm_and_a_flip_in_what_all_hold_names_its_rank(found: Runs, run: str, case: str) -> None:
    told = found[run][case]
    assert told["alarms"] == told["after"] == []
    assert told["also"] == [2]
    for rank in (1, 2):
        assert told["flips"][f"tail.weight@{rank}"] == [rank]
        assert told["flips"][f"optimizer:step@{rank}"] == [rank]


def test_a_flip_in_a_shard_names_the_rank_where_there_are_copies(found: Runs) -> None:
    three = found["3 after 2"]["flips,adafactor,3,50"]["flips"]
    assert [three[f"{name}@{rank}"] for name in ("wide.weight", "tall.weight:column") for rank in (1, 2)] == [[1], [2], [1], [2]]
    two_of_two = found["4"]["flips,adamw,2,50"]["flips"]
    flipped = [two_of_two[f"{name}@{rank}"] for name in ("wide.weight", "tall.weight:exp_avg") for rank in (1, 2)]
    assert flipped == [[1, 3], [0, 2], [1, 3], [0, 2]]  # nobody knows which of two copies is right
    alone = found["4"]["flips,adamw,1,2"]["flips"]
    assert alone["wide.weight@1"] == []  # one rank alone holds it: there is nothing to compare it with
