"""The index: parquet parts of at most a million rows, one row a sample (interfaces.md section 5).

`offset` and `length` span the sample's whole stretch of its shard, headers included, so one range read brings it and one checksum
covers it. `crc32` and `hash` (XXH3-64) are over that stretch.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from stagecoach.contract.dataset import PartEntry
from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound, ObjectCorrupt
from stagecoach_workloads.data import parquet
from stagecoach_workloads.data.images import ImageInfo
from stagecoach_workloads.data.samples import Sample

ROWS_PER_PART = 1_000_000

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc32", pa.uint32()),
        ("hash", pa.uint64()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("category", pa.dictionary(pa.int16(), pa.string())),
        ("chars", pa.int32()),
        ("frames", pa.int32()),
        ("member_names", pa.list_(pa.string())),
        ("member_offsets", pa.list_(pa.int64())),
        ("member_lengths", pa.list_(pa.int64())),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One sample's row. Member offsets count from the sample's own start; names are the parts after the key's dot."""

    key: str
    shard: int
    offset: int
    length: int
    crc32: int
    hash: int
    kind: str
    category: str
    chars: int
    frames: int
    member_names: list[str]
    member_offsets: list[int]
    member_lengths: list[int]
    widths: list[int]
    heights: list[int]


def row_of(
    sample: Sample,
    *,
    shard: int,
    offset: int,
    stretch: bytes,
    names: list[str],
    offsets: list[int],
    lengths: list[int],
    infos: Sequence[ImageInfo],
) -> IndexRow:
    """The row of a sample whose `stretch` lies at `offset` of its shard: what the writer notes, and what a lost index is made from."""
    return IndexRow(
        key=sample.key,
        shard=shard,
        offset=offset,
        length=len(stretch),
        crc32=zlib.crc32(stretch),
        hash=xxhash.xxh3_64_intdigest(stretch),
        kind=sample.kind,
        category=sample.category,
        chars=len(sample.text),
        frames=len(infos) if sample.kind == "video" else 0,
        member_names=names,
        member_offsets=offsets,
        member_lengths=lengths,
        widths=[info.width for info in infos],
        heights=[info.height for info in infos],
    )


def to_table(rows: Sequence[IndexRow]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def to_bytes(table: pa.Table) -> bytes:
    """Parquet with zstd; equal tables give equal bytes for one version of pyarrow."""
    return parquet.to_bytes(table, row_group_size=131_072, store_schema=True)


def publish_parts(
    store: Store, tables: Iterable[pa.Table], *, folder: str = "index", rows_per_part: int = ROWS_PER_PART
) -> list[PartEntry]:
    """Cuts the rows of `tables` into parts and publishes them."""
    entries: list[PartEntry] = []
    for entry, body in cut_parts(tables, folder=folder, rows_per_part=rows_per_part):
        store.publish(entry.key, body)
        entries.append(entry)
    return entries


def cut_parts(
    tables: Iterable[pa.Table], *, folder: str = "index", rows_per_part: int = ROWS_PER_PART
) -> Iterator[tuple[PartEntry, bytes]]:
    """The rows of `tables` as parts: entry and bytes. No rows at all are one empty part."""
    held: list[pa.Table] = []
    count = number = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= rows_per_part:
            whole = pa.concat_tables(held).unify_dictionaries()
            yield _part(folder, number, whole.slice(0, rows_per_part))
            held, count, number = [whole.slice(rows_per_part)], count - rows_per_part, number + 1
    if count or not number:
        yield _part(folder, number, pa.concat_tables(held).unify_dictionaries() if held else SCHEMA.empty_table())


def _part(folder: str, number: int, table: pa.Table) -> tuple[PartEntry, bytes]:
    body = to_bytes(table.combine_chunks())
    key = f"{folder}/part-{number:05d}.parquet"
    return PartEntry(key=key, size=len(body), digest=hashlib.sha256(body).hexdigest(), rows=table.num_rows), body


def read_part(store: Store, part: PartEntry, *, schema: pa.Schema | None = None) -> pa.Table:
    """Reads and checks one part. Raises DataError that names it when it is missing, damaged or another's."""
    uri = store.uri_of(part.key)
    try:
        body = store.read(part.key)
    except NotFound:
        raise DataError(f"{uri}: this index part is missing; restore it, or index the shards again (`stagecoach data index`)") from None
    except ObjectCorrupt as error:
        raise DataError(f"index part {part.key}: {error}") from None
    if len(body) != part.size or hashlib.sha256(body).hexdigest() != part.digest:
        raise DataError(f"{uri}: {len(body):,} bytes that do not have the digest in dataset.json: damaged, stale or swapped")
    table = parquet.from_bytes(body)
    if table.num_rows != part.rows or table.schema.names != (schema or SCHEMA).names:
        raise DataError(f"{uri}: has columns {table.schema.names}; written by another version of the index")
    return table


class IndexColumns:
    """All rows as numpy arrays: what planning and reading need, without Python objects per sample.

    `image_start[i] : image_start[i + 1]` are sample i's images in `widths` and `heights`.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        self.table = table
        self.num_samples = table.num_rows
        self.shard = _array(table, "shard")
        self.offset = _array(table, "offset")
        self.length = _array(table, "length")
        self.hash = _array(table, "hash")
        self.crc32 = _array(table, "crc32")
        self.chars = _array(table, "chars")
        self.frames = _array(table, "frames")
        self.image_start, self.widths = list_column(table, "widths")
        _, self.heights = list_column(table, "heights")

    def row(self, number: int) -> IndexRow:
        """One row with its names and members. Raises IndexError past the end."""
        if not 0 <= number < self.num_samples:
            raise IndexError(f"sample {number} of {self.num_samples}")
        return IndexRow(**self.table.slice(number, 1).to_pylist()[0])

    def members(self, numbers: np.ndarray) -> list[tuple[str, tuple[tuple[str, int, int], ...]]]:
        """Of each sample the key, and name, offset and length of each member: what every read needs, many times faster than `row`."""
        keys, *members = (column.take(pa.array(numbers)).to_pylist() for column in self._named)
        return [(key, tuple(zip(*lists, strict=True))) for key, *lists in zip(keys, *members, strict=True)]

    @cached_property
    def _named(self) -> list[pa.Array]:
        columns = [self.table.column(name).combine_chunks() for name in ("key", "member_names", "member_offsets", "member_lengths")]
        return [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]

    @property
    def categories(self) -> tuple[list[str], np.ndarray]:
        """Names, and each sample's number among them."""
        column = self.table.column("category").combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], type=SCHEMA.field("category").type)
        return column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False)


def _array(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def list_column(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (starts of length rows + 1, flat values)."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy(zero_copy_only=False)
    return offsets - offsets[0], values[offsets[0] : offsets[-1]]


class Totals:
    """Counts over all rows as they pass."""

    def __init__(self) -> None:
        self.samples = self.images = self.chars = self.image_bytes = 0
        self.categories: set[str] = set()

    def watch(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            columns = IndexColumns([table])
            self.samples += columns.num_samples
            self.images += len(columns.widths)
            self.chars += int(columns.chars.sum())
            starts, lengths = list_column(table, "member_lengths")
            self.image_bytes += int(lengths.sum() - lengths[starts[:-1]].sum()) if len(lengths) else 0
            self.categories.update(columns.categories[0])
            yield table
