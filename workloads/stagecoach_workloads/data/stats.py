"""`stagecoach data stats`: counts, token and image histograms, shares by category. Everything from the index; no sample is read."""

from typing import Any

import numpy as np

from stagecoach_workloads.data.dataset import Dataset

_PERCENTILES = (0, 10, 50, 90, 99, 100)


def dataset_stats(dataset: Dataset) -> dict[str, Any]:
    """A plain value for `--json` and for tables."""
    index, manifest = dataset.index, dataset.manifest
    names, numbers = index.categories
    images = np.diff(index.image_start)
    counts = np.bincount(numbers, minlength=len(names)) if len(names) else np.zeros(0, int)
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
        "chars_per_sample": percentiles(index.chars),
        "images_per_sample": percentiles(images),
        "image_width": percentiles(index.widths),
        "image_height": percentiles(index.heights),
        "bytes_per_sample": percentiles(index.length),
        "categories": {
            name: {"samples": int(n), "share": round(int(n) / max(1, len(dataset)), 4)}
            for name, n in sorted(zip(names, counts, strict=True))
        },
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Minimum, quantiles, maximum and mean; empty for no values."""
    if not len(values):
        return {}
    found = {f"p{p}": round(float(v), 1) for p, v in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}
    return {**found, "mean": round(float(values.mean()), 2)}
