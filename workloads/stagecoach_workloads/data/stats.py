"""`stagecoach data stats`: counts, token and image histograms, shares by category. Everything from the index; no sample is read."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from stagecoach.errors import DataError
from stagecoach_workloads.data.dataset import Dataset
from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.tokens import TextTokenizer, read_counts

_PERCENTILES = (0, 10, 50, 90, 99, 100)
_BAR = 40  # characters of the longest bar


def dataset_stats(dataset: Dataset, tokenizer: TextTokenizer | None = None, template: str = "plain") -> dict[str, Any]:
    """A plain value for `--json` and for tables. `tokens_per_sample` is empty without a tokenizer, or when it never counted the dataset."""
    index, manifest = dataset.index, dataset.manifest
    names, numbers = index.categories
    images = np.diff(index.image_start)
    counts = np.bincount(numbers, minlength=len(names)) if len(names) else np.zeros(0, int)
    tokens = token_counts(dataset, tokenizer, template)
    long_side = np.maximum(index.widths, index.heights)
    return {
        "uri": dataset.uri,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "licence": manifest.licence,
        "made_by": manifest.made_by,
        "samples": len(dataset),
        "images": int(manifest.counts.images),
        "bytes": int(manifest.counts.bytes),
        "shards": len(manifest.shards),
        "rejected": manifest.rejected,
        "text_tokens": int(tokens.sum()),
        "tokens_per_sample": percentiles(tokens),
        "chars_per_sample": percentiles(index.chars),
        "images_per_sample": percentiles(images),
        "image_width": percentiles(index.widths),
        "image_height": percentiles(index.heights),
        "bytes_per_sample": percentiles(index.length),
        "histograms": {
            "text tokens per sample": histogram(tokens),
            "long side of images, px": histogram(long_side),
            "images per sample": histogram(images),
        },
        "categories": {
            name: {"samples": int(n), "share": round(int(n) / max(1, len(dataset)), 4)}
            for name, n in sorted(zip(names, counts, strict=True))
        },
    }


def token_counts(dataset: Dataset, tokenizer: TextTokenizer | None, template: str) -> np.ndarray:
    """Text tokens of each sample, as they were counted; empty when they were not."""
    if tokenizer is None:
        return np.zeros(0, np.int64)
    try:
        lengths = read_counts(dataset, tokenizer, template)
    except DataError:  # not counted for this tokenizer: `stats` never reads samples
        return np.zeros(0, np.int64)
    running = np.concatenate([[0], np.cumsum(lengths.runs, dtype=np.int64)])
    return np.diff(running[lengths.start])


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Minimum, quantiles, maximum and mean; empty for no values."""
    if not len(values):
        return {}
    found = {f"p{p}": round(float(v), 1) for p, v in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}
    return {**found, "mean": round(float(values.mean()), 2)}


def histogram(values: np.ndarray) -> list[dict[str, int]]:
    """How many values lie from `low` up to but without `below`: powers of two, from the first to the last that hold any; 0 by itself."""
    if not len(values):
        return []
    places = np.where(values > 0, np.floor(np.log2(np.maximum(values, 1))).astype(int) + 1, 0)
    counts = np.bincount(places)
    first = int(np.flatnonzero(counts)[0])
    edges = [0, *(1 << place for place in range(len(counts)))]
    return [{"low": edges[place], "below": edges[place + 1], "count": int(counts[place])} for place in range(first, len(counts))]


def mixture_shares(plan: DataPlan, steps: int = 20) -> dict[str, dict[str, Any]]:
    """By source: the mixture's weight, its shares of the first `steps` steps, and how many steps an epoch of it takes (None for a source
    that none of these steps began a sample of)."""
    rows = [row for step in range(steps) for row in plan.batch(step)]
    achieved = plan.shares(rows)
    taken = Counter(part.source for row in rows for part in row.slices if part.start == 0)
    weights = {weight.dataset: weight.weight for weight in plan.mixture.weights if weight.weight > 0}
    total = sum(weights.values())
    found: dict[str, dict[str, Any]] = {}
    for number, source in enumerate(plan.sources):
        shares = {what: by_name.get(source.name, 0.0) for what, by_name in achieved.items()}
        per_epoch = round(source.num_samples * steps / taken[number], 1) if taken[number] else None
        found[source.name] = {
            "weight": round(weights[source.name] / total, 6),
            "steps": steps,
            **shares,
            "epoch_samples": source.num_samples,
            "steps_per_epoch": per_epoch,
        }
    return found


def render_stats(stats: dict[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    yield (
        f"{stats['uri']}: {stats['kind']}, {stats['samples']:,} samples, {stats['images']:,} images, {stats['bytes']:,} bytes "
        f"in {stats['shards']} shards, fingerprint {stats['fingerprint'][:16]}"
    )
    for name in ("tokens_per_sample", "chars_per_sample", "images_per_sample", "image_width", "image_height", "bytes_per_sample"):
        if stats[name]:
            yield f"  {name}: " + ", ".join(f"{key} {value:g}" for key, value in stats[name].items())
    for name, bins in stats["histograms"].items():
        largest = max((item["count"] for item in bins), default=1)
        for item in bins:
            bar = "#" * max(int(item["count"] > 0), item["count"] * _BAR // largest)
            yield f"  {name} {item['low']:>7,} to {item['below'] - 1:>7,}: {item['count']:>9,} {bar}"
    for name, share in stats["categories"].items():
        yield f"  {name}: {share['samples']:,} ({share['share']:.1%})"
