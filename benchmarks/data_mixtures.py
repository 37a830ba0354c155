"""How full rows are in every stage of the recipes: the miniatures on the made corpus, the papers' on made-up sizes with their means.

    python benchmarks/data_mixtures.py [--corpus URI] [--steps 20] [--json FILE]

Two budgets bind, positions and encoded images, and no packing can fill the one that does not bind: rows of short captions are full of
images long before they are full of positions. So beside the fill of positions stands the fill of whichever budget binds the row, and the
rows used over the fewest that any packing could use (all documents' positions over seq_len, or images over images_per_row). Encoder load:
max over mean of 64 ranks, per step. Sizes of the papers' stages: images per sample as in the recipe, text log-normal about its mean.
"""

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from stagecoach.contract.plan import DatasetRef, StagePlan
from stagecoach.recipes import RECIPES, recipe_function
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.plan.layout import Layout, LayoutSettings
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.plan.packing import fewest_rows
from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.plan.source import Source
from stagecoach_workloads.data.tokens import RunLengths

RANKS, SAMPLES = 64, 40_000
MINIATURES, PAPERS = ("mm1_tiny", "mm1_5_tiny", "blip3_tiny"), ("mm1_3b", "mm1_5_3b", "blip3_4b")


def made_up(dataset: DatasetRef, stage: StagePlan) -> Source:
    """A source with the recipe's means: images Poisson about theirs (all one where the mean is one), text log-normal, photos 4:3."""
    rng = np.random.default_rng(len(dataset.name))
    mean, frames = dataset.stats.images, dataset.stats.frames
    images = np.full(SAMPLES, round(mean)) if mean in (0, 1) else np.maximum(1, rng.poisson(mean, SAMPLES))
    per = np.full(SAMPLES, frames) if frames else images
    start = np.concatenate([[0], np.cumsum(per)])
    width = rng.choice([640, 800, 1024], start[-1])
    place = np.cumsum(per * int(dataset.stats.image_bytes) + 400)
    index = SimpleNamespace(
        num_samples=SAMPLES, image_start=start, widths=width, heights=width * 3 // 4, shard=place // 64_000_000, offset=place % 64_000_000
    )
    runs = np.repeat(per + 1, per + 1)
    text = np.maximum(1, rng.lognormal(-0.32, 0.8, SAMPLES) * dataset.stats.text_tokens).repeat(per + 1)
    layout = Layout(
        index,  # type: ignore[arg-type]
        RunLengths(start + np.arange(SAMPLES + 1), np.maximum(1, text / runs).astype(np.int32)),
        LayoutSettings(stage.model.image, stage.model.connector.tokens, stage.data.frames),
        kind=dataset.kind,
    )
    return Source(dataset.name, layout, seed=1, fingerprint=dataset.name, shuffle_blocks=stage.data.packing.shuffle_blocks)


def papers_plan(stage: StagePlan) -> DataPlan:
    drawn = {weight.dataset for weight in stage.data.mixture.weights if weight.weight > 0}
    sources = [made_up(dataset, stage) for dataset in stage.data.datasets if dataset.name in drawn]
    return DataPlan(
        sources,
        mixture=stage.data.mixture,
        packing=stage.data.packing,
        batch=stage.batch,
        seed=1,
        microbatch_rows=stage.layout.microbatch_rows,
    )


def measure(plan: DataPlan, stage: StagePlan, steps: int) -> dict[str, float]:
    """Means over the rows of the first steps."""
    seq_len, most = stage.batch.seq_len, stage.data.packing.images_per_row
    batches = [plan.batch(step) for step in range(steps)]
    rows = [row for batch in batches for row in batch]
    by_stream: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        name = row.slices[0].source if plan.counts_rows else 0
        by_stream.setdefault(name, []).append((row.positions, row.images))
    fewest = sum(
        fewest_rows([p for p, _ in found], [i for _, i in found], max_positions=seq_len, max_images=most) for found in by_stream.values()
    )
    loads = [[sum(batch[n].images for micro in mine for n in micro) for mine in plan.assign(batch, RANKS)] for batch in batches]
    balance = [max(load) / float(np.mean(load)) for load in loads if sum(load)]
    return {
        "rows a step": round(len(rows) / steps, 1),
        "fill of positions": round(float(np.mean([row.positions / seq_len for row in rows])), 4),
        "fill of images": round(float(np.mean([row.images / most for row in rows])), 4),
        "fill of the binding budget": round(float(np.mean([max(row.positions / seq_len, row.images / most) for row in rows])), 4),
        "fewest possible rows / rows": round(fewest / len(rows), 4),
        "load max/mean over 64 ranks": round(float(np.mean(balance)), 4) if balance else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="A made corpus; one of profile tiny is made without it.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="stagecoach-mixtures-") as folder:
        corpus = given.corpus or f"file://{folder}"
        if not given.corpus:
            make_corpus(corpus, profile="tiny", workers=2)
        for name in (*MINIATURES, *PAPERS):
            assert name in RECIPES
            for stage in recipe_function(name)().stages:
                plan = open_data(stage, data=corpus).plan if name in MINIATURES else papers_plan(stage)
                told = found[f"{name} {stage.name}"] = measure(plan, stage, given.steps)
                print(f"{name + ' ' + stage.name:<24} " + ", ".join(f"{what} {value:,.4g}" for what, value in told.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
