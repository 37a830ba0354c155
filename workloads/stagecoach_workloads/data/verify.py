"""`stagecoach data verify`: reads every byte and names every sample that is not what was written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound
from stagecoach_workloads.data import tar
from stagecoach_workloads.data.dataset import Dataset, crc_matches, open_dataset_at


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding. `sample` is None when it is not one sample's."""

    key: str
    sample: str | None
    says: str


def verify_dataset(store: Store, *, threads: int = 2) -> list[Damage]:
    """All damage below `store`; an empty list means that every byte is as it was written. Store errors past their retries are raised."""
    try:
        dataset = open_dataset_at(store)
    except DataError as error:
        return [Damage(store.uri, None, str(error))]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda shard: list(_verify_shard(dataset, shard)), range(len(dataset.manifest.shards))))
    return [damage for shard in found for damage in shard] + list(_strangers(dataset))


def _verify_shard(dataset: Dataset, shard: int) -> Iterator[Damage]:
    entry = dataset.manifest.shards[shard]
    try:
        size = dataset.store.stat(entry.key).size
        body = dataset.store.read_ranges(entry.key, [(0, size)])[0]  # not `read`, which gives nothing of a damaged object
    except NotFound:
        yield Damage(entry.key, None, f"missing, with its {entry.samples} samples")
        return
    if len(body) == entry.size and xxhash.xxh3_128_hexdigest(body) == entry.digest:
        return
    named = False
    for number in np.flatnonzero(dataset.index.shard == shard):
        row = dataset.index.row(int(number))
        if not crc_matches(row, body[row.offset : row.offset + row.length]):
            named = True
            what = "is cut off" if row.offset + row.length > len(body) else "differs from what was written"
            yield Damage(entry.key, row.key, f"bytes {row.offset:,} to {row.offset + row.length:,}: {what}")
    if not named:
        says = f"{len(body):,} bytes instead of {entry.size:,}" if len(body) != entry.size else "its end differs"
        yield Damage(entry.key, None, f"no sample is touched, but {says} (the last {len(tar.END)} bytes are zeros)")


def _strangers(dataset: Dataset) -> Iterator[Damage]:
    """Shards and parts that nothing names: leftovers, or of another dataset."""
    known = {entry.key for entry in dataset.manifest.shards} | {part.key for part in dataset.manifest.parts}
    for folder in ("shards", "index"):
        for info in dataset.store.list(folder):
            if info.key not in known:
                yield Damage(info.key, None, "named by nothing in dataset.json")
