"""Hashes of collated tensors over a 200-step plan: equal for every number of ranks and workers, from the start and resumed.

    python benchmarks/data_elastic.py [--ranks 1,2,3,4,8] [--workers 0,1,4] [--resumes 5] [--json FILE]

The full product that tests/distributed/data checks a part of. Workers are real processes; what each rank collated is hashed row by row
and put back into the global order. Every combination also resumes at `--resumes` random steps (seed fixed) from the state alone, for 8
steps each. Exit 1 at the first difference, with the step. Takes about half an hour on two cores.
"""

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.plan.open import open_data

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/distributed/data"))
elastic = importlib.import_module("test_elastic")
warnings.filterwarnings("ignore", message="This DataLoader will create")
RESUMED_STEPS = 8


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def compare(found: list[str], reference: list[str], start: int, what: str) -> None:
    """Ends with exit code 1 at the first step that differs."""
    for step, (mine, theirs) in enumerate(zip(found, reference[start:], strict=False), start):
        if mine != theirs:
            sys.exit(f"{what}: the tensors of step {step} differ from those of one rank without workers")
    if len(found) < min(RESUMED_STEPS, len(reference) - start):
        sys.exit(f"{what}: only {len(found)} steps came out")


def check(corpus: str, ranks: int, workers: int, resumes: int, reference: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    what = f"{ranks} ranks, {workers} workers"
    compare(elastic.gathered(corpus, ranks=ranks, workers=workers), reference, 0, what)
    rng = random.Random(1000 * ranks + workers)
    starts = sorted(rng.sample(range(1, elastic.STEPS - RESUMED_STEPS), resumes))
    for start in starts:
        state = json.loads(json.dumps(open_data(elastic.stage(), data=corpus).plan.state(start)))
        found = elastic.gathered(corpus, ranks=ranks, workers=workers, start=start, stop=start + RESUMED_STEPS, state=state)
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
    with tempfile.TemporaryDirectory(prefix="stagecoach-elastic-") as folder:
        make_corpus(f"file://{folder}", profile="tiny", only=("captions", "captions_synthetic", "interleaved", "text"))
        reference = elastic.gathered(f"file://{folder}", ranks=1, workers=0)
        if len(set(reference)) != elastic.STEPS:
            sys.exit("steps have equal tensors: the comparison would prove nothing")
        for workers in given.workers:
            for ranks in given.ranks:
                results.append(check(f"file://{folder}", ranks, workers, given.resumes, reference))
                print(json.dumps(results[-1]), flush=True)
                if given.json:
                    given.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} combinations x {elastic.STEPS} steps, each resumed at {given.resumes} steps: all equal")


if __name__ == "__main__":
    main()
