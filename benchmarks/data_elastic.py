"""Hashes of collated tensors over a 200-step plan: equal for every number of ranks and workers, from the start and resumed.

    python benchmarks/data_elastic.py [--ranks 1,2,3,4,8] [--workers 0,1,4] [--resumes 1] [--at-once 2] [--json FILE] [--results FILE]

The full product that tests/distributed/data checks a part of. Workers are real processes; what each rank collated is hashed row by row
and put back into the global order. Every combination also resumes at `--resumes` random steps (seed fixed, other steps for every
combination: 15 in all) from the state alone, for 8 steps each. Combinations run `--at-once` at a time, the largest first. Nearly all of
the time is worker processes starting: 90 for a pass over the product, and as many for every resume. Exit 1 at the first difference, with
the step. Writes what was compared to workloads/results/data_elastic.md, anew after every combination.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stagecoach.contract.plan import StagePlan
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.testing.collated import gathered

STEPS, RESUMED_STEPS, SIDE = 200, 8, 16
RESULTS = Path(__file__).parents[1] / "workloads/results/data_elastic.md"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def differs(found: list[str], reference: list[str], start: int, what: str) -> str | None:
    """What is wrong, with the first step that differs."""
    for step, (mine, theirs) in enumerate(zip(found, reference[start:], strict=False), start):
        if mine != theirs:
            return f"{what}: the tensors of step {step} differ from those of one rank without workers"
    return f"{what}: only {len(found)} steps came out" if len(found) < min(RESUMED_STEPS, len(reference) - start) else None


def check(stage: StagePlan, corpus: str, ranks: int, workers: int, resumes: int, reference: list[str]) -> dict[str, Any]:
    """One combination, in a process of its own: from the start, then resumed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    begun, what = time.perf_counter(), f"{ranks} ranks, {workers} workers"
    starts = sorted(random.Random(1000 * ranks + workers).sample(range(1, STEPS - RESUMED_STEPS), resumes))
    wrong = differs(gathered(stage, corpus, ranks=ranks, workers=workers, stop=STEPS), reference, 0, what)
    for start in starts:
        if wrong is not None:
            break
        state = json.loads(json.dumps(open_data(stage, data=corpus).plan.state(start)))
        found = gathered(stage, corpus, ranks=ranks, workers=workers, start=start, stop=start + RESUMED_STEPS, state=state)
        wrong = differs(found, reference, start, f"{what}, resumed at {start}")
    spent = round(time.perf_counter() - begun, 1)
    return {"ranks": ranks, "workers": workers, "resumed_at": starts, "equal": wrong is None, "wrong": wrong, "s": spent}


def small_stage() -> StagePlan:
    """MM1's miniature pre-training, on images of 16 px: what is compared does not depend on their size, the time of hashing does."""
    stage = mm1_tiny(resolution=SIDE).stages[0]
    return replace(stage, model=replace(stage.model, image=replace(stage.model.image, size=SIDE)))


def as_page(results: list[dict[str, Any]], of: int, spent: float) -> str:
    """The results as a page."""
    equal = sum(found["equal"] for found in results)
    lines = [
        "# Data: elasticity",
        "",
        f"`{' '.join(['python', *sys.argv])}`: hashes of the collated tensors of {STEPS} steps in the global order, beside those",
        f"of one rank without workers: {equal} of {of} combinations of ranks and workers equal, each also resumed from the state alone.",
        f"{spent:,.0f} s.",
        "",
        "| ranks | workers | resumed at | equal | s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for found in sorted(results, key=lambda result: (result["workers"], result["ranks"])):
        starts = ", ".join(map(str, found["resumed_at"]))
        lines.append(f"| {found['ranks']} | {found['workers']} | {starts} | {found['wrong'] or 'yes'} | {found['s']} |")
    return "\n".join(lines) + "\n"


def write_results(given: argparse.Namespace, results: list[dict[str, Any]], of: int, spent: float) -> None:
    given.results.write_text(as_page(results, of, spent))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 3, 4, 8])
    parser.add_argument("--workers", type=numbers, default=[0, 1, 4])
    parser.add_argument("--resumes", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    combinations = sorted(((ranks, workers) for ranks in given.ranks for workers in given.workers), key=lambda c: -c[0] * (c[1] + 0.3))
    stage, begun = small_stage(), time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="stagecoach-elastic-") as folder, ProcessPoolExecutor(given.at_once, spawn) as pool:
        corpus = f"file://{folder}"
        make_corpus(corpus, profile="tiny", only=("captions", "captions_synthetic", "interleaved", "text"))
        reference = gathered(stage, corpus, ranks=1, workers=0, stop=STEPS)
        if len(set(reference)) != STEPS:
            sys.exit("steps have equal tensors: the comparison would prove nothing")
        print(f"one rank without workers: {time.perf_counter() - begun:.0f} s; {len(combinations)} combinations", flush=True)
        jobs = [pool.submit(check, stage, corpus, ranks, workers, given.resumes, reference) for ranks, workers in combinations]
        for job in as_completed(jobs):
            results.append(job.result())
            print(f"{len(results)} of {len(jobs)}: {json.dumps(results[-1])}", flush=True)
            write_results(given, results, len(jobs), time.perf_counter() - begun)
    wrong = [result["wrong"] for result in results if result["wrong"]]
    print("\n".join(wrong) or f"{len(results)} combinations x {STEPS} steps, each resumed {given.resumes} times: all equal")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
