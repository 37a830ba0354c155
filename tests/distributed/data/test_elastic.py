"""Real worker processes: collated tensors are the same for any number of ranks and workers, from any step, across kills and signals."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stagecoach.contract.plan import StagePlan
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach.testing import shared_memory
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.testing import collated
from stagecoach_workloads.testing.collated import row_hashes

STEPS = 200


def stage() -> StagePlan:
    return mm1_tiny().stages[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the datasets that the stage draws from."""
    uri = f"file://{tmp_path_factory.mktemp('corpus')}"
    make_corpus(uri, profile="tiny", only=tuple(weight.dataset for weight in stage().data.mixture.weights if weight.weight > 0))
    return uri


def gathered(corpus: str, *, ranks: int, workers: int, start: int = 0, stop: int = STEPS, state: dict[str, Any] | None = None) -> list[str]:
    return collated.gathered(stage(), corpus, ranks=ranks, workers=workers, start=start, stop=stop, state=state)


@pytest.fixture(scope="module")
def alone(corpus: str) -> list[str]:
    """One rank, no workers: what everything else must equal."""
    found = gathered(corpus, ranks=1, workers=0)
    assert len(set(found)) == STEPS  # steps differ, or equal hashes would prove nothing
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("ranks", "workers"), [(1, 4), (2, 1), (3, 0), (4, 0), (8, 0)])
def test_collated_tensors_are_equal_for_any_ranks_and_workers(ranks: int, workers: int, alone: list[str], corpus: str) -> None:
    assert gathered(corpus, ranks=ranks, workers=workers) == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@settings(max_examples=12)
@given(
    start=st.integers(0, STEPS - 2),
    ranks=st.integers(1, 5),
    workers=st.sampled_from([0] * 7 + [1]),  # each is a process that starts, for each rank
    prefetch=st.integers(1, 6),
)
@example(start=3, ranks=2, workers=2, prefetch=1)
@example(start=60, ranks=1, workers=1, prefetch=6)
def test_global_batches_know_no_ranks_workers_or_prefetch(
    alone: list[str], corpus: str, start: int, ranks: int, workers: int, prefetch: int
) -> None:
    stop = start + 2
    found = collated.gathered(stage(), corpus, ranks=ranks, workers=workers, prefetch=prefetch, start=start, stop=stop)
    assert found == alone[start:stop]


def test_resumed_at_five_random_steps_on_other_numbers_of_ranks(alone: list[str], corpus: str) -> None:
    plan = open_data(stage(), data=corpus).plan
    rng = random.Random(11)
    for ranks, workers in ((1, 0), (2, 0), (3, 0), (1, 1), (4, 0)):
        start = rng.randrange(1, STEPS - 10)
        state = json.loads(json.dumps(plan.state(start)))
        found = gathered(corpus, ranks=ranks, workers=workers, start=start, stop=start + 8, state=state)
        assert found == alone[start : start + 8]


_CHILD = """
import json, sys
sys.path.insert(0, {here!r})
from test_elastic import open_data, row_hashes, stage, StepLoader, WorkSettings
import hashlib
if __name__ == "__main__":
    corpus, start, state = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    loader = StepLoader(open_data(stage(), data=corpus), start=start, state=state, settings=WorkSettings(workers=1))
    for step in loader:
        rows = [row for batch in step.batches for row in row_hashes(batch)]
        print(json.dumps([step.step, rows, loader.state(step.step + 1)]), flush=True)
"""


def test_a_killed_loader_goes_on_at_its_last_state_and_leaves_nothing_behind(corpus: str, tmp_path: Path) -> None:
    """kill -9 in the middle; the next process continues; no worker survives and nothing stays in /dev/shm."""
    script = tmp_path / "child.py"
    script.write_text(_CHILD.format(here=str(Path(__file__).parent)))
    named = shared_memory.names()
    seen: dict[int, list[str]] = {}
    step, state = 0, None
    for lines in (7, 5):
        child = subprocess.Popen([sys.executable, str(script), corpus, str(step), json.dumps(state)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(lines):
            number, rows, state = json.loads(child.stdout.readline())
            seen[number], step = rows, number + 1
        below = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        _, alive = psutil.wait_procs(below, timeout=60)  # workers look every 5 s; a loaded machine takes its time
        assert alive == []
    data = open_data(stage(), data=corpus)
    whole = {
        step.step: [row for batch in step.batches for row in row_hashes(batch)]
        for step in StepLoader(data, stop=12, settings=WorkSettings(workers=0))
    }
    assert seen == whole
    assert shared_memory.left_behind(named) == set()


def test_workers_survive_the_sigterm_of_their_group(corpus: str) -> None:
    loader = iter(StepLoader(open_data(stage(), data=corpus), stop=30, settings=WorkSettings(workers=2)))
    first = next(loader)
    workers = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    assert workers  # or nothing would be proven
    for child in workers:
        child.send_signal(signal.SIGTERM)
    assert [first.step, *(step.step for step in loader)] == list(range(30))


_LEAVES_EARLY = """
import sys
sys.path.insert(0, {here!r})
from test_elastic import stage
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings

if __name__ == "__main__":
    steps = iter(StepLoader(open_data(stage(), data=sys.argv[1]), settings=WorkSettings(workers=1)))
    print(next(steps).step)
"""


def test_a_process_that_ends_in_mid_loop_does_not_wait_for_its_workers(corpus: str, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(_LEAVES_EARLY.format(here=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, str(script), corpus], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
