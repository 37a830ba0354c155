"""Does training learn to see? `mm1_tiny` pre-training on the made corpus against the image-blind optimum of its captions.

    python benchmarks/learning.py [--steps 240] [--ranks 2] [--json FILE]

Twice the same stage through the stage runner: with each image beside its own text, and with images shuffled against texts. The
image-blind optimum is exact: the entropy of the captions (every case equally likely) in nats per target token. With its own images the
validation loss of the captions must fall below it within 3 minutes of training on two cores; with shuffled ones it must not.
"""

import argparse
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.registry import get_launcher
from stagecoach.site import Site
from stagecoach.stages import StageTask, run_stage
from stagecoach.stages.request import StageRequest, prepare, record_run
from stagecoach.storage import open_store
from stagecoach_workloads.data.made import corpus as made
from stagecoach_workloads.data.made.level import PROFILES
from stagecoach_workloads.data.made.scenes import Caption, LongCaption
from stagecoach_workloads.data.samples import Sample
from stagecoach_workloads.data.tokens import TextTokenizer

DATASETS = {"captions": Caption, "captions_synthetic": LongCaption}
ALL = [*DATASETS, "interleaved", "text"]
LIMIT_S = 180.0


@dataclass(frozen=True)
class ShuffledJob(made.MakeJob):
    """The same samples, each with the images of another one, chosen without looking."""

    def sample(self, number: int) -> Sample:
        own = super().sample(number)
        if not own.images:
            return own
        others = random.Random(f"{self.seed}/{self.dataset}/{self.split}/{number}")
        while True:
            other = super().sample(others.randrange(self.samples))
            if other.key != own.key and len(other.images) == len(own.images):
                return replace(own, images=other.images)


def make(folder: str, *, shuffled: bool) -> str:
    """The `demo` corpus of pre-training's datasets."""
    job = made.MakeJob
    try:
        if shuffled:
            made.MakeJob = ShuffledJob  # type: ignore[misc]
        made.make_corpus(folder, profile="demo", seed=1, only=ALL)
    finally:
        made.MakeJob = job  # type: ignore[misc]
    return folder


def blind_optimum(corpus: str) -> dict[str, float]:
    """Nats per target token that no reader of the text alone can go below, by dataset, and over both as validation weighs them."""
    store = open_store(corpus)
    tokenizer = TextTokenizer(store.read("tokenizer.json"))
    level = PROFILES["demo"].level
    found, nats, targets = {}, 0.0, 0.0
    for name, task in DATASETS.items():
        cases = task().cases(level, "validation")
        length = sum(len(tokenizer.encode(case.answer)) + 1 for case in cases) / len(cases)  # and the end of the text
        found[name] = math.log(len(cases)) / length
        nats, targets = nats + math.log(len(cases)), targets + length
    return found | {"both": nats / targets}


def train(root: str, run_id: str, corpus: str, steps: int, ranks: int, settings: Sequence[str]) -> dict[str, Any]:
    """One stage to its end: validation losses, and the seconds from the first step to the last."""
    wanted = [f"pretrain.steps={steps}", f"pretrain.evaluation.validate_every_steps={steps // 4}", *settings]
    request = StageRequest(
        recipe="mm1_tiny", stage="pretrain", root=root, run_id=run_id, data=corpus, settings=wanted, ranks_per_node=ranks
    )
    prepared = prepare(request, Site())
    run = record_run(prepared)
    task = StageTask(runs=prepared.runs, run=run, plan=prepared.plan, site=Site())
    started = time.monotonic()
    result = run_stage(task, get_launcher("local"))
    return {"wall_s": time.monotonic() - started, "curve": curve_of(task.folder), "metrics": dict(result.manifest.metrics)}


def curve_of(job: JobFolder) -> list[tuple[int, float, float]]:
    """(step, seconds since the first step, captions' validation loss)."""
    events = list(job.events(1, "rank-0"))
    first = min(event["t"] for event in events if event.get("name") == "step")
    return [
        (event["step"], event["t"] - first, event["value"]["category/captions"])
        for event in events
        if event.get("name") == "validation" and "category/captions" in event["value"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--only", choices=("own", "shuffled"))
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STAGECOACH_STATE_DIR"] = f"{folder}/state"  # its jobs are no one else's
        report: dict[str, Any] = {"machine": f"{os.cpu_count()} {platform.machine()} cores", "steps": asked.steps}
        for kind in ("own", "shuffled"):
            if asked.only in (None, kind):
                corpus = make(f"file://{folder}/{kind}", shuffled=kind == "shuffled")
                report["blind"] = blind_optimum(corpus)
                report[kind] = train(f"file://{folder}/runs", kind, corpus, asked.steps, asked.ranks, asked.settings)
                print(kind, json.dumps(report[kind]), "blind", json.dumps(report["blind"]), flush=True)
        blind = report["blind"]["both"]
        if "own" in report:
            in_time = [loss for _, seconds, loss in report["own"]["curve"] if seconds <= LIMIT_S]
            report["sees"] = bool(in_time) and min(in_time) < blind
        if "shuffled" in report:
            report["blind_stays_blind"] = min(loss for _, _, loss in report["shuffled"]["curve"]) >= blind
    text = json.dumps(report, indent=1)
    print(text)
    if asked.json:
        Path(asked.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
