"""Which tensors of two checkpoints differ, and by how much. Names, types and shapes come from the manifests; bytes are streamed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagecoach.checkpoints.listing import CheckpointRef
from stagecoach.checkpoints.manifest import BYTES_OF
from stagecoach.checkpoints.tensors import bands, tensor_checksum
from stagecoach.contract.checkpoint import CheckpointManifest, TensorEntry
from stagecoach.contract.ledger import JobFolder

if TYPE_CHECKING:
    import numpy as np

COMPARED_BYTES = 256 << 20  # of a tensor: larger ones are told to differ, not by how much

_NUMPY_OF = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    job: JobFolder
    ref: CheckpointRef
    manifest: CheckpointManifest


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One tensor that is not the same in both."""

    part: str
    name: str
    says: str
    max_abs: float | None = None  # None: not compared (not there, another shape, too large, or numpy is not installed)


def differences(left: Side, right: Side, *, part: str | None = None) -> Iterator[Difference]:
    """Every tensor that differs, sorted by part and name; `part` limits it to "model" or "optimizer"."""
    ours, theirs = _by_name(left.manifest, part), _by_name(right.manifest, part)
    for key in sorted(ours.keys() | theirs.keys()):
        found = _compare(left, right, ours.get(key), theirs.get(key))
        if found is not None:
            yield Difference(part=key[0], name=key[1], says=found[0], max_abs=found[1])


def _by_name(manifest: CheckpointManifest, part: str | None) -> dict[tuple[str, str], TensorEntry]:
    return {(entry.part, entry.name): entry for entry in manifest.tensors if part in (None, entry.part)}


def _compare(left: Side, right: Side, ours: TensorEntry | None, theirs: TensorEntry | None) -> tuple[str, float | None] | None:
    if ours is None or theirs is None:
        return f"only in {'B' if ours is None else 'A'}", None
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)} and {list(theirs.shape)}", None
    if ours.dtype != theirs.dtype:
        return f"type {ours.dtype} and {theirs.dtype}", None
    if tensor_checksum(left.job, left.ref, ours) == tensor_checksum(right.job, right.ref, theirs):
        return None
    return "values", _max_abs(left, right, ours, theirs)


def _max_abs(left: Side, right: Side, ours: TensorEntry, theirs: TensorEntry) -> float | None:
    """Largest absolute difference, in float64; infinite where one has a number and the other has none."""
    if math.prod(ours.shape) * BYTES_OF[ours.dtype] > COMPARED_BYTES:
        return None
    try:
        import numpy as np
    except ModuleNotFoundError:
        return None
    with np.errstate(invalid="ignore"):  # numbers that are none
        a, b = _numbers(left, ours), _numbers(right, theirs)
        if a is None or b is None:
            return None
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def _numbers(side: Side, entry: TensorEntry) -> "np.ndarray[Any, np.dtype[np.float64]] | None":
    import numpy as np

    body = b"".join(bands(side.job, side.ref, entry))
    if entry.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(body, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    dtype = _NUMPY_OF.get(entry.dtype)
    return None if dtype is None else np.frombuffer(body, dtype).astype(np.float64)
