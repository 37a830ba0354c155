"""Other numbers of ranks: the same batches, the same state, the same curve.

    python benchmarks/elastic.py [--steps 50] [--json FILE]

- curves: two ranks against one, the largest relative difference of the loss. Limits: 1e-5 within 10 steps and 1e-3 within 50 in fp32,
  1e-9 within 50 in fp64.
- chain: one run that is stopped three times and goes on with other ranks, 4 -> 2 -> 3 -> 1, by real supervisors, against a run of two ranks
  that nobody touched: samples of every step (a hash of the multiset), the loss, and the final state's largest difference.
- gathered: that run's last checkpoint, loaded by 1, 2, 3 and 4 ranks and gathered: one digest of the weights, which is that of the bytes
  in the bucket, and one of the optimizer's state.

MM1's miniature with one layer of each kind on a made corpus; gloo ranks on this machine. `ok` says whether a limit was kept; the exit is 0.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stagecoach.checkpoints import latest, read_manifest, verify, weights_digest
from stagecoach.checkpoints.diff import Side, differences
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan, Steps
from stagecoach.contract.records import to_plain
from stagecoach.testing.chaos import ChaosRun, Kill, Story
from stagecoach.testing.training import DATASETS, toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus

WORLDS = (4, 2, 3, 1)
RANK = [sys.executable, "-m", "stagecoach_workloads.testing.curves"]
LIMITS = ((10, False, 1e-5), (50, False, 1e-3), (50, True, 1e-9))  # steps, double precision, relative difference


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        corpus = f"file://{folder}/corpus"
        make_corpus(corpus, profile="tiny", only=DATASETS)
        report: dict[str, Any] = {"machine": f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"}
        report["curves"] = measure_curves(folder, toy_stage(corpus), arguments.steps)
        print(json.dumps(report["curves"], indent=1), flush=True)
        plan = toy_stage(corpus, [f"duration.steps={arguments.steps}"])
        report["chain"], job = measure_chain(folder, plan)
        print(json.dumps(report["chain"], indent=1), flush=True)
        report["gathered"] = measure_gathered(folder, plan, job)
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


# --- curves


def measure_curves(folder: Path, plan: StagePlan, steps: int) -> list[dict[str, Any]]:
    """Each limit with the difference that was found, as far as `steps` go."""
    orders = {
        "single": {"plan": to_plain(plan), "steps": steps, "fp64": False},
        "double": {"plan": to_plain(plan), "steps": steps, "fp64": True},
    }
    found = {ranks: run_ranks(folder / f"curves-{ranks}", ranks, orders) for ranks in (1, 2)}
    lines = []
    for upto, is_double, limit in LIMITS:
        name = "double" if is_double else "single"
        pairs = list(zip(found[2][name]["losses"], found[1][name]["losses"], strict=True))[:upto]
        apart = max(abs(two - one) / abs(one) for two, one in pairs)
        precision = "fp64" if is_double else "fp32"
        lines.append({"precision": precision, "steps": len(pairs), "relative": apart, "limit": f"< {limit:g}", "ok": apart < limit})
    return lines


def run_ranks(folder: Path, ranks: int, orders: Mapping[str, Any]) -> dict[str, Any]:
    """Rank 0's reports of so many processes. Raises RuntimeError with what the first that failed said."""
    folder.mkdir()
    arguments = [str(ranks), str(folder / "store"), json.dumps(orders), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*RANK, str(rank), *arguments], stderr=subprocess.PIPE, text=True, env=environment) for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(failed[0])
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in orders}


# --- chain


def measure_chain(folder: Path, plan: StagePlan) -> tuple[dict[str, Any], JobFolder]:
    """(figures, the job that changed its ranks)."""
    assert isinstance(plan.duration, Steps)
    steps = plan.duration.steps
    stops = [Kill(phase="data_wait", way="term20", step=steps * number // len(WORLDS)) for number in range(1, len(WORLDS))]
    (folder / "chain").mkdir()
    (folder / "whole").mkdir()
    chain, whole = ChaosRun(folder / "chain", plan, stops, ranks=WORLDS), ChaosRun(folder / "whole", plan, (), ranks=2)
    changed, untouched = chain.run(), whole.run()
    job = chain.job.job
    starts = [job.attempt_start(number) for number in job.attempt_numbers()]
    same = changed.ids == untouched.ids and (changed.tokens, changed.images) == (untouched.tokens, untouched.images)
    apart = relative(changed, untouched)
    figures = {
        "worlds": [start.world_size for start in starts if start], "steps": len(changed.ids), "same_batches": same,
        "relative_10": max(apart[:10]), "relative_50": max(apart[:50]), "state_max_abs": furthest_state(job, whole.job.job),
        "problems": changed.problems, "limits": "same batches; 1e-5 within 10 steps, 1e-3 within 50",
        "ok": same and not changed.problems and max(apart[:10]) < 1e-5 and max(apart[:50]) < 1e-3,
    }  # fmt: skip
    return figures, job


def relative(one: Story, other: Story) -> list[float]:
    return [abs(one.losses[step] - loss) / abs(loss) for step, loss in sorted(other.losses.items())]


def furthest_state(one: JobFolder, other: JobFolder) -> float:
    """Largest difference of any value of the last checkpoints; tensors that are equal are not listed."""
    sides = []
    for job in (one, other):
        ref = latest(job)
        assert ref is not None
        sides.append(Side(job=job, ref=ref, manifest=verify(job, ref).manifest))
    return max((each.max_abs or 0.0 for each in differences(*sides)), default=0.0)


# --- gathered


def measure_gathered(folder: Path, plan: StagePlan, job: JobFolder) -> dict[str, Any]:
    """Digests by number of ranks, and of the bytes themselves."""
    ref = latest(job)
    assert ref is not None
    stored = weights_digest(job, ref, read_manifest(job, ref)[0])
    orders = {"gathered": {"plan": to_plain(plan), "job": job.uri}}
    found = {ranks: run_ranks(folder / f"gathered-{ranks}", ranks, orders)["gathered"] for ranks in sorted(WORLDS)}
    weights, optimizers = {each["model"] for each in found.values()}, {each["optimizer"] for each in found.values()}
    return {"stored": stored, "by_ranks": found, "ok": weights == {stored} and len(optimizers) == 1}


if __name__ == "__main__":
    sys.exit(main())
