"""Parquet read from bytes: nothing of Python's is left in the hands of Arrow's threads (they abort a process that ends before them)."""

import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import stagecoach_workloads
from stagecoach_workloads.data import parquet

TABLE = pa.table({"rows": list(range(1000))})


@pytest.mark.parametrize("read", [parquet.opened, parquet.from_bytes])
def test_what_is_read_holds_nothing_of_the_bytes(read: object) -> None:
    body = parquet.to_bytes(TABLE)
    held = sys.getrefcount(body)
    result = read(body)  # type: ignore[operator]
    assert sys.getrefcount(body) == held
    assert (result if isinstance(result, pa.Table) else result.read()) == TABLE


def test_only_this_module_reads_parquet() -> None:
    """Another way to it would be a way around the copy."""
    root = Path(stagecoach_workloads.__file__).parent
    readers = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if re.search(r"ParquetFile\(|pq\.read", path.read_text())]
    assert readers == ["data/parquet.py"]
