"""Parquet to and from bytes, through memory that is Arrow's own.

Arrow's threads outlive the read that started them. Where one of them lets go of a Python object (a `BytesIO`, a `bytes` that a buffer
wraps) while Python is ending, it cannot have the interpreter's lock any more and the process aborts with all of its work done
(apache/arrow#34314: seen in 1 of 35 runs of `data plan` on a loaded machine).
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _copied(body: bytes) -> pa.BufferReader:
    owned = pa.allocate_buffer(len(body))
    memoryview(owned).cast("B")[:] = body
    return pa.BufferReader(owned)


def opened(body: bytes) -> pq.ParquetFile:
    """For reading parts of it. Raises what Arrow raises (`pa.ArrowException`, ValueError, OSError) where `body` is not parquet."""
    return pq.ParquetFile(_copied(body))


def opened_part(held: pa.Buffer, footer: pq.FileMetaData) -> pq.ParquetFile:
    """A file of which `held`, Arrow's own memory, has some bytes, where they stand in the file. Reading others gives rubbish, or raises."""
    return pq.ParquetFile(pa.BufferReader(held), metadata=footer)


def from_bytes(body: bytes) -> pa.Table:
    """Raises as `opened` does."""
    return opened(body).read()  # `read_table` draws in what it needs for folders of files: 0.13 s of every rank's start


def to_bytes(table: pa.Table, **options: Any) -> bytes:
    """With zstd; equal tables give equal bytes for one version of pyarrow. `options` are `write_table`'s."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    body: bytes = sink.getvalue().to_pybytes()
    return body
