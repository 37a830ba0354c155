"""Checks of a stage's mixture, datasets, images and packing."""

from collections.abc import Iterator

from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import did_you_mean
from stagecoach.costs.load import all_samples, mean_sample, step_load
from stagecoach.costs.tiles import grids, most_tiles
from stagecoach.recipes.findings import Finding

TOLERANCE = 1e-4  # of a mixture's sum: weights are printed with six digits


def findings(stage: StagePlan) -> Iterator[Finding]:
    """Everything wrong with the data."""
    yield from _mixture(stage)
    yield from _images(stage)
    yield from _amounts(stage)


def _mixture(stage: StagePlan) -> Iterator[Finding]:
    names = [dataset.name for dataset in stage.data.datasets]
    drawn = [weight.dataset for weight in stage.data.mixture.weights]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding("error", f"data.datasets.{name}", "is named twice", "give each dataset a name of its own")
    for name in sorted({name for name in drawn if drawn.count(name) > 1}):
        yield Finding("error", f"data.mixture.weights.{name}", "has two weights", "keep one")
    for name in drawn:
        if name not in names:
            near = did_you_mean(name, names)
            yield Finding("error", f"data.mixture.weights.{name}", f"is no dataset of this stage{near}", "add it to data.datasets")
    for name in names:
        if name not in drawn:
            yield Finding("warning", f"data.datasets.{name}", "has no weight, so it is never drawn", "give it one, or remove it")
    total = sum(weight.weight for weight in stage.data.mixture.weights)
    if abs(total - 1) > TOLERANCE:
        shares = ", ".join(f"{weight.dataset} {weight.weight:g}" for weight in stage.data.mixture.weights)
        yield Finding("error", "data.mixture.weights", f"sum to {total:.6g} ({shares})", "make them sum to 1")


def _images(stage: StagePlan) -> Iterator[Finding]:
    split, budget, seq_len = stage.model.image.split, stage.data.packing.images_per_row, stage.batch.seq_len
    tokens = stage.model.connector.tokens
    if not grids(split):
        says = f"no grid has {split.min_tiles} to {split.max_tiles} tiles"
        yield Finding("error", "model.image.split.min_tiles", says, "make min_tiles at most max_tiles")
        return
    if budget * tokens >= seq_len:
        fit = (seq_len - 1) // tokens
        says = f"{budget} images take {budget * tokens} of batch.seq_len={seq_len} positions ({tokens} each): none is left for text"
        yield Finding("error", "data.packing.images_per_row", says, f"use at most {fit}, or a longer batch.seq_len")
    most = most_tiles(split)
    if most > budget:
        says = f"one image may become {most} encoded images ({most * tokens} positions), a row holds {budget}"
        yield Finding("error", "data.packing.images_per_row", says, f"use at least {most}, or fewer model.image.split.max_tiles")
    if stage.data.frames > budget:
        says = f"{stage.data.frames} frames of one clip, a row holds {budget} images"
        yield Finding("error", "data.frames", says, f"raise data.packing.images_per_row to {stage.data.frames}, or use fewer frames")
    if stage.kind == "video" and not stage.data.frames:
        yield Finding("error", "data.frames", "is 0 in a video stage", "say how many frames of a clip are encoded, such as 24")


def _amounts(stage: StagePlan) -> Iterator[Finding]:
    needed, there = step_load(stage).samples, all_samples(stage)
    if there < needed:
        says = f"{there} samples in all its datasets, one step needs about {needed:.0f}"
        yield Finding("error", "data.datasets", says, "use a smaller batch.size, or more data")
    long = [name for name, positions in _lengths(stage) if positions > stage.batch.seq_len]
    if long and stage.data.packing.over_budget != "split":
        says = f"the mean sample of {', '.join(long)} is longer than a row of {stage.batch.seq_len}: it is {_verb(stage)}"
        yield Finding("warning", "batch.seq_len", says, "use longer rows, or data.packing.over_budget=split")


def _verb(stage: StagePlan) -> str:
    return {"truncate": "cut", "drop": "dropped"}.get(stage.data.packing.over_budget, "split")


def _lengths(stage: StagePlan) -> Iterator[tuple[str, float]]:
    for dataset in stage.data.datasets:
        yield dataset.name, mean_sample(stage, dataset).positions
