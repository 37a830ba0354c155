"""What one optimizer step reads: rows, samples, images, positions, from the mixture and the datasets' mean sizes.

Conventions. Every sample of a source has the source's mean size. With `mixture.unit = rows` a row holds one source (MM1); with
`samples` a row holds the mixture (MM1.5's SFT). A row closes when its positions or its images are used up. A sample longer than a row
is cut to one row (`truncate`) or dealt over several (`split`). Costs count every position of every row, padding included.
"""

import math
from dataclasses import dataclass

from stagecoach.contract.plan import DatasetRef, Model, StagePlan, Steps, Tokens
from stagecoach.costs.tiles import most_tiles, typical_tiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A source's mean sample. `tiles` are encoded images: frames, or images times tiles of each."""

    positions: float
    text_tokens: float
    images: float  # as stored
    tiles: float
    bytes_read: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLoad:
    """Means per optimizer step over all ranks. `square_positions`: sum over documents of length squared, for attention."""

    rows: float
    samples: float
    images: float  # as stored
    tiles: float  # encoded images
    positions: int  # rows x sequence length
    filled: float  # share of positions that hold a token
    square_positions: float
    bytes_read: float


def image_tokens(model: Model) -> dict[str, int]:
    """Positions of one image: unsplit, of a 640 x 480 photo, and at most."""
    tokens = model.connector.tokens
    return {"unsplit": tokens, "typical": tokens * typical_tiles(model), "most": tokens * most_tiles(model.image.split)}


def mean_sample(plan: StagePlan, dataset: DatasetRef) -> Sample:
    """The source's mean sample under this stage's split and frames."""
    stats, split = dataset.stats, plan.model.image.split
    if dataset.kind == "video" and plan.data.frames:
        images, tiles = 1.0, float(plan.data.frames)  # one clip is read, its frames are encoded unsplit
    else:
        images = stats.images
        split_here = split.kind != "none" and images < split.below_images
        tiles = images * ((stats.tiles_per_image or typical_tiles(plan.model)) if split_here else 1.0)
    positions = stats.text_tokens + tiles * plan.model.connector.tokens
    return Sample(
        positions=positions,
        text_tokens=stats.text_tokens,
        images=images,
        tiles=tiles,
        bytes_read=images * stats.image_bytes + stats.text_bytes,
    )


def step_load(plan: StagePlan) -> StepLoad:
    """Means of one step. Datasets that the mixture does not name count nothing; weights are taken relative to their sum."""
    sources = {dataset.name: mean_sample(plan, dataset) for dataset in plan.data.datasets}
    weights = {w.dataset: w.weight for w in plan.data.mixture.weights if w.dataset in sources}
    total = sum(weights.values()) or 1.0
    shares = {name: weight / total for name, weight in weights.items()}
    if plan.data.mixture.unit == "rows":
        per_row = {name: samples_per_row(plan, sources[name]) for name in shares}
        return _scaled(plan, sources, {name: share * per_row[name] for name, share in shares.items()})
    mean = Sample(**{key: sum(share * getattr(sources[name], key) for name, share in shares.items()) for key in Sample.__slots__})
    per_row_mixed = samples_per_row(plan, mean)
    return _scaled(plan, sources, {name: share * per_row_mixed for name, share in shares.items()})


def samples_per_row(plan: StagePlan, sample: Sample) -> float:
    """How many such samples fill a row, under both budgets."""
    seq_len, packing = plan.batch.seq_len, plan.data.packing
    if sample.positions > seq_len:
        return seq_len / sample.positions if packing.over_budget == "split" else 1.0
    by_positions = seq_len / max(sample.positions, 1.0)
    by_images = packing.images_per_row / sample.tiles if sample.tiles else math.inf
    return max(1.0, min(by_positions, by_images))


def _scaled(plan: StagePlan, sources: dict[str, Sample], per_row: dict[str, float]) -> StepLoad:
    """From samples of each source in the mean row to a step."""
    seq_len, all_samples = plan.batch.seq_len, sum(per_row.values())
    rows = plan.batch.size if plan.batch.unit == "rows" else plan.batch.size / max(all_samples, 1e-9)
    split = plan.data.packing.over_budget == "split"
    kept = {name: sources[name].positions if split else min(sources[name].positions, seq_len) for name in per_row}

    def total(key: str) -> float:
        return rows * sum(per_row[name] * float(getattr(sources[name], key)) for name in per_row)

    return StepLoad(
        rows=rows,
        samples=rows * all_samples,
        images=total("images"),
        tiles=total("tiles"),
        positions=round(rows * seq_len),
        filled=min(1.0, sum(per_row[name] * kept[name] for name in per_row) / seq_len),
        square_positions=rows * sum(per_row[name] * kept[name] * min(kept[name], seq_len) for name in per_row),
        bytes_read=total("bytes_read"),
    )


def all_samples(plan: StagePlan) -> int:
    """Samples of the datasets that the mixture draws from."""
    drawn = {w.dataset for w in plan.data.mixture.weights if w.weight > 0}
    return sum(dataset.stats.samples for dataset in plan.data.datasets if dataset.name in drawn)


def stage_steps(plan: StagePlan) -> int:
    """Optimizer steps of the stage, at least one."""
    duration, load = plan.duration, step_load(plan)
    if isinstance(duration, Steps):
        return duration.steps
    if isinstance(duration, Tokens):
        return max(1, math.ceil(duration.tokens / max(load.positions, 1)))
    return max(1, math.ceil(duration.epochs * all_samples(plan) / max(load.samples, 1e-9)))
