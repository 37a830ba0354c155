"""`stagecoach data index`: a lost or damaged index made again from the shards, and from nothing else.

While `dataset.json` stands it says which shards there are, and their digests: every byte that goes into the new index is checked first,
and equal rows give equal parts, so the fingerprint stays. Without `dataset.json` the shards that stand there are all that is known: a
shard that is missing as well cannot be noticed, so the caller must say that it is wanted.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa
import xxhash

from stagecoach.contract.dataset import (
    MANIFEST_KEY,
    Counts,
    DatasetManifest,
    PartEntry,
    ShardEntry,
    fingerprint,
    read_manifest,
    write_manifest,
)
from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound, ObjectCorrupt
from stagecoach_workloads.data import index, parquet, tar
from stagecoach_workloads.data.images import image_info
from stagecoach_workloads.data.samples import SampleError, from_json

_SHARD = re.compile(r"shards/(\d{6})-\d{4}\.tar")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was done. `parts` are the keys written; `fingerprint_changed` means that runs which pinned the old one will refuse."""

    manifest: DatasetManifest
    parts: tuple[str, ...] = ()
    manifest_written: bool = False
    fingerprint_changed: bool = False


def mend_index(store: Store, *, without_manifest: bool = False, new_fingerprint: bool = False, threads: int = 2) -> Rebuilt:
    """Makes parts again that are missing or damaged; does nothing when all are well.

    Raises DataError when a shard is not what `dataset.json` says, when `dataset.json` is missing and `without_manifest` is not given, when
    it is damaged, and when the new index would have another fingerprint (another version of pyarrow) and `new_fingerprint` is not given.
    """
    if not store.exists(MANIFEST_KEY):
        return _from_shards_alone(store, threads) if without_manifest else _refuse(store)
    manifest = read_manifest(store)
    bad = [part for part in manifest.parts if not _is_well(store, part)]
    if not bad:
        return Rebuilt(manifest)
    tables = index_shards(store, manifest.shards, threads=threads)
    parts = list(index.cut_parts(tables, rows_per_part=_rows_per_part(manifest.parts)))
    entries = tuple(entry for entry, _ in parts)
    if entries != manifest.parts and not new_fingerprint:
        raise DataError(
            f"{store.uri}: the index made from the shards has fingerprint {fingerprint(entries)[:16]} and dataset.json says "
            f"{manifest.fingerprint[:16]} (pyarrow {pa.__version__} writes the rows differently); restore {bad[0].key} from a copy, or "
            "say --new-fingerprint: then runs that pinned the old one refuse to go on"
        )
    written = [(entry, body) for entry, body in parts if entry not in manifest.parts or entry in bad]
    for entry, body in written:
        store.publish(entry.key, body)
    changed = entries != manifest.parts
    if changed:
        write_manifest(store, replace(manifest, parts=entries, fingerprint=fingerprint(entries)))
    return Rebuilt(read_manifest(store), tuple(entry.key for entry, _ in written), changed, changed)


def _refuse(store: Store) -> Rebuilt:
    read_manifest(store)  # raises, saying what stands there
    raise AssertionError("unreachable")


def _rows_per_part(parts: Sequence[PartEntry]) -> int:
    return max(1, parts[0].rows) if len(parts) > 1 else index.ROWS_PER_PART


def _is_well(store: Store, part: PartEntry) -> bool:
    try:
        body = store.read(part.key)
    except (NotFound, ObjectCorrupt):
        return False
    return len(body) == part.size and hashlib.sha256(body).hexdigest() == part.digest


def _from_shards_alone(store: Store, threads: int) -> Rebuilt:
    """Shards as they stand, every one of which must be a whole tar; what only dataset.json knew is said to be unknown."""
    if "building" in store.list_folders():
        raise DataError(f"{store.uri}: an unfinished dataset stands here; run the command that began it again and it goes on")
    keys = [info.key for info in store.list("shards") if _SHARD.fullmatch(info.key)]
    if not keys:
        raise DataError(f"{store.uri}: there are no shards (shards/*.tar) to make an index from")
    with ThreadPoolExecutor(threads) as pool:
        shards = list(pool.map(lambda key: _entry_of(store, key), keys))
    rows = [table for table in index_shards(store, shards, threads=threads) if table.num_rows]
    parts = list(index.cut_parts(rows))
    for entry, body in parts:
        store.publish(entry.key, body)
    manifest = _describe(rows, tuple(shards), tuple(entry for entry, _ in parts))
    write_manifest(store, manifest)
    return Rebuilt(read_manifest(store), tuple(entry.key for entry, _ in parts), True, True)


def _describe(rows: Sequence[pa.Table], shards: tuple[ShardEntry, ...], parts: tuple[PartEntry, ...]) -> DatasetManifest:
    totals = index.Totals()
    for _ in totals.watch(iter(rows)):
        pass
    kinds = sorted({kind for table in rows for kind in table.column("kind").unique().to_pylist()})
    if len(kinds) != 1:
        raise DataError(f"the shards hold samples of the kinds {', '.join(kinds)}; a dataset has one kind")
    return DatasetManifest(
        kind=kinds[0],
        categories=tuple(sorted(totals.categories)),
        counts=Counts(
            samples=totals.samples,
            images=totals.images,
            chars=totals.chars,
            image_bytes=totals.image_bytes,
            bytes=sum(entry.size for entry in shards),
        ),
        shards=shards,
        parts=parts,
        fingerprint=fingerprint(parts),
        licence="unknown: dataset.json was lost",
        made_by="rebuilt from the shards",
    )


def _entry_of(store: Store, key: str) -> ShardEntry:
    body = store.read(key)
    samples = sum(1 for _ in _samples(body, key))
    return ShardEntry(key=key, size=len(body), digest=xxhash.xxh3_128_hexdigest(body), samples=samples)


def index_shards(store: Store, shards: Sequence[ShardEntry], *, threads: int = 2) -> Iterator[pa.Table]:
    """One table of rows a shard, in their order; at most `threads` shards are held at once.

    Raises DataError for a shard that is not its entry's.
    """
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(shards), threads):
            group = list(enumerate(shards[first : first + threads], first))
            yield from pool.map(lambda item: _as_written(index.to_table(_shard_rows(store, item[1], item[0]))), group)


def _as_written(table: pa.Table) -> pa.Table:
    """The writer's units pass through parquet on their way to a part; without that detour the same rows give other bytes."""
    return parquet.from_bytes(index.to_bytes(table))


def _shard_rows(store: Store, entry: ShardEntry, number: int) -> list[index.IndexRow]:
    uri = store.uri_of(entry.key)
    try:
        body = store.read(entry.key)
    except NotFound:
        raise DataError(f"{uri}: this shard is missing; restore it first, an index without it would be of another dataset") from None
    except ObjectCorrupt as error:
        raise DataError(f"shard {entry.key}: {error}") from None
    if len(body) != entry.size or xxhash.xxh3_128_hexdigest(body) != entry.digest:
        raise DataError(f"{uri}: does not have the digest in dataset.json: damaged or swapped; restore it first (`stagecoach data verify`)")
    rows = [_row(key, body, members, number, uri) for key, members in _samples(body, uri)]
    if len(rows) != entry.samples:
        raise DataError(f"{uri}: holds {len(rows)} samples and dataset.json says {entry.samples}")
    return rows


def _samples(body: bytes, shard: str) -> Iterator[tuple[str, list[tar.Member]]]:
    """(key, members) of each sample."""
    members = tar.read_members(body, shard=shard)
    for key, group in groupby(members, key=lambda member: member.name.partition(".")[0]):
        yield key, list(group)


def _row(key: str, body: bytes, members: list[tar.Member], shard: int, uri: str) -> index.IndexRow:
    """The row that the writer wrote. Raises DataError that names the sample when it is none of ours."""
    names = [member.name.partition(".")[2] for member in members]
    if names[0] != "json":
        raise DataError(f"{uri}: sample {key!r} has the members {', '.join(names)} and no .json first; convert these shards instead")
    first = members[0].offset - tar.BLOCK
    last = members[-1]
    stretch = body[first : last.offset + len(last.body) + (-len(last.body) % tar.BLOCK)]
    try:
        sample = from_json(members[0].body, key=key, images=tuple(member.body for member in members[1:]))
    except SampleError as error:
        raise DataError(f"{uri}: sample {key!r}: {error}") from None
    return index.row_of(
        sample,
        shard=shard,
        offset=first,
        stretch=stretch,
        names=names,
        offsets=[member.offset - first for member in members],
        lengths=[len(member.body) for member in members],
        infos=[image_info(picture) for picture in sample.images],
    )
