"""Parts of a parquet file by ranges of it: a shot's image must not cost the whole file."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stagecoach.storage import NotFound, Store
from stagecoach_workloads.data import parquet
from stagecoach_workloads.data.samples import SampleError

_TAIL = 64 * 1024  # bytes: most footers are shorter
_END = 8  # a footer is followed by its length in four bytes and by PAR1


def footer_of(store: Store, key: str) -> pq.FileMetaData:
    """Raises SampleError for a file that is not there, and as `parquet.opened` does for one that is not parquet."""
    try:
        size = store.stat(key).size
    except NotFound:
        raise SampleError(f"{store.uri_of(key)}: not there") from None
    tail = _last(store, key, size, _TAIL)
    whole = int.from_bytes(tail[-_END:-4], "little") + _END
    if whole > len(tail):
        tail = _last(store, key, size, whole)
    return parquet.opened(tail[-whole:]).metadata


def _last(store: Store, key: str, size: int, length: int) -> bytes:
    length = min(size, length)
    return store.read_ranges(key, [(size - length, length)])[0]


def read_column(store: Store, key: str, footer: pq.FileMetaData, group: int, column: str) -> list[Any]:
    """A column of one row group. Raises what Arrow raises where it is damaged.

    Arrow looks for it where it stands in the file. So a buffer as long as that is made, of which only the column's own bytes are ever
    written: memory that nothing was written to takes no room. (A file-like object would leave Arrow's threads with an object of Python's:
    see `stagecoach_workloads.data.parquet`.)
    """
    first, end = _extent(footer.row_group(group), column)
    held = pa.allocate_buffer(end)
    store.read_into(key, first, [memoryview(held).cast("B")[first:end]])
    found: list[Any] = parquet.opened_part(held, footer).read_row_group(group, columns=[column])[column].to_pylist()
    return found


def _extent(group: pq.RowGroupMetaData, column: str) -> tuple[int, int]:
    """From which byte to which the leaves of the column reach; they are neighbours."""
    leaves = [leaf for leaf in map(group.column, range(group.num_columns)) if leaf.path_in_schema.split(".")[0] == column]
    starts = [min(leaf.data_page_offset, leaf.dictionary_page_offset or leaf.data_page_offset) for leaf in leaves]
    return min(starts), max(start + leaf.total_compressed_size for start, leaf in zip(starts, leaves, strict=True))
