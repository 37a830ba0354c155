"""Hashes of collated tensors over a 200-step plan: equal for every number of ranks and workers, from the start and resumed.

    python benchmarks/data_elastic.py [--ranks 1,2,3,4,8] [--workers 0,1,4] [--resumes 5] [--json FILE]

The full product that tests/distributed/data checks a part of. Workers are real processes; what each rank collated is hashed row by row
and put back into the global order. Every combination also resumes at `--resumes` random steps (seed fixed) from the state alone, for 8
steps each. Exit 1 at the first difference, with the step. Takes about half an hour on two cores.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from stagecoach.contract.plan import StagePlan
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.testing.collated import gathered

warnings.filterwarnings("ignore", message="This DataLoader will create")
STEPS, RESUMED_STEPS = 200, 8


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def compare(found: list[str], reference: list[str], start: int, what: str) -> None:
    """Ends with exit code 1 at the first step that differs."""
    for step, (mine, theirs) in enumerate(zip(found, reference[start:], strict=False), start):
        if mine != theirs:
            sys.exit(f"{what}: the tensors of step {step} differ from those of one rank without workers")
    if len(found) < min(RESUMED_STEPS, len(reference) - start):
        sys.exit(f"{what}: only {len(found)} steps came out")


def check(stage: StagePlan, corpus: str, ranks: int, workers: int, resumes: int, reference: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    what = f"{ranks} ranks, {workers} workers"
    compare(gathered(stage, corpus, ranks=ranks, workers=workers, stop=STEPS), reference, 0, what)
    rng = random.Random(1000 * ranks + workers)
    starts = sorted(rng.sample(range(1, STEPS - RESUMED_STEPS), resumes))
    for start in starts:
        state = json.loads(json.dumps(open_data(stage, data=corpus).plan.state(start)))
        found = gathered(stage, corpus, ranks=ranks, workers=workers, start=start, stop=start + RESUMED_STEPS, state=state)
        compare(found, reference, start, f"{what}, resumed at {start}")
    return {"ranks": ranks, "workers": workers, "resumed_at": starts, "equal": True, "s": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 3, 4, 8])
    parser.add_argument("--workers", type=numbers, default=[0, 1, 4])
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    stage = mm1_tiny().stages[0]
    with tempfile.TemporaryDirectory(prefix="stagecoach-elastic-") as folder:
        make_corpus(f"file://{folder}", profile="tiny", only=("captions", "captions_synthetic", "interleaved", "text"))
        reference = gathered(stage, f"file://{folder}", ranks=1, workers=0, stop=STEPS)
        if len(set(reference)) != STEPS:
            sys.exit("steps have equal tensors: the comparison would prove nothing")
        for workers in given.workers:
            for ranks in given.ranks:
                results.append(check(stage, f"file://{folder}", ranks, workers, given.resumes, reference))
                print(json.dumps(results[-1]), flush=True)
                if given.json:
                    given.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} combinations x {STEPS} steps, each resumed at {given.resumes} steps: all equal")


if __name__ == "__main__":
    main()
