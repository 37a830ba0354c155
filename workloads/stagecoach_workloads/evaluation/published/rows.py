"""Rows of a benchmark's files: parquet as the Hugging Face hub has it, JSON, JSON lines or CSV, with the images in them or beside them."""

import csv
import io
import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from stagecoach.errors import DataError
from stagecoach.storage import NotFound, OutOfRange, Store
from stagecoach_workloads.data import parquet
from stagecoach_workloads.data.media import video_frames
from stagecoach_workloads.data.samples import SampleError
from stagecoach_workloads.evaluation.published.ranges import footer_of, read_column

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
MAX_FRAMES = 64
MAX_FIELD = 16 * 1024 * 1024  # characters of a CSV field; Python's own limit of 131,072 is less than some texts have
Row = dict[str, Any]


@dataclass(frozen=True)
class InStore:
    """An image file beside the annotations."""

    store: Store
    key: str

    def read(self) -> bytes:
        return _read_file(self.store, self.key)

    @property
    def identity(self) -> Hashable:
        """Of what it shows: downloads hold an image again under the name of each question about it."""
        try:
            return _file_digest(self.store, self.key)
        except SampleError:
            return self


@dataclass(frozen=True)
class InParquet:
    """An image in a row of a parquet file (`{"bytes": ..., "path": ...}`)."""

    store: Store
    key: str
    row: int
    column: str

    def read(self) -> bytes:
        try:
            value = _cell(self.store, self.key, self.row, self.column)
        except (pa.ArrowException, OSError, ValueError, OutOfRange) as error:
            raise SampleError(f"{self.store.uri_of(self.key)}: row {self.row}: column {self.column} cannot be read: {error}") from None
        body = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(body, bytes):
            raise SampleError(f"{self.store.uri_of(self.key)}: row {self.row}: column {self.column} holds no image")
        return body

    @property
    def identity(self) -> Hashable:
        """Of what it shows: the hub's files hold an image again with each question about it."""
        try:
            return _digest(self.read())
        except SampleError:
            return self


@dataclass(frozen=True)
class Frame:
    """One frame of a video file."""

    store: Store
    key: str
    number: int

    def read(self) -> bytes:
        frames = _frames(self.store, self.key)
        return frames[min(self.number, len(frames) - 1)]

    @property
    def identity(self) -> Hashable:
        return self


def annotation_files(store: Store) -> list[str]:
    """Keys of the files that may hold rows, in order. Raises DataError when there are none."""
    keys = sorted(info.key for info in store.list("") if info.key.lower().endswith(SUFFIXES))
    if not keys:
        raise DataError(f"{store.uri}: no file with rows there ({', '.join(SUFFIXES)}); give the folder that holds the benchmark's files")
    return keys


def rows_of(store: Store, key: str) -> Iterator[tuple[int, Row]]:
    """(number, row). Images in parquet files are left where they are; of one that lies beside its file the path is told.

    Raises DataError that names a file that cannot be read, and the row or line.
    """
    uri = store.uri_of(key)
    try:
        if key.endswith(".parquet"):
            yield from _parquet_rows(store, key)
            return
        text = _read_file(store, key).decode("utf-8-sig")
        if key.endswith(".csv"):
            yield from _csv_rows(text, uri)
            return
        # not splitlines(): a text may hold U+2028
        loaded = [json.loads(line) for line in text.split("\n") if line.strip()] if key.endswith(".jsonl") else json.loads(text)
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{uri}: cannot be read: {error}") from None
    rows = _listed(loaded, uri)
    if _may_be_torn(text):
        for number, row in enumerate(rows):
            _check_whole(row, f"{uri}: row {number}")
    yield from enumerate(rows)


def whole_json(store: Store, key: str) -> Any:
    """A JSON file as it is. Raises DataError."""
    try:
        text = _read_file(store, key).decode("utf-8-sig")
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{store.uri_of(key)}: cannot be read: {error}") from None
    if _may_be_torn(text):
        _check_whole(loaded, store.uri_of(key))
    return loaded


def _may_be_torn(text: str) -> bool:
    """Half a surrogate pair gets into a JSON text only as an escape."""
    return "\\ud" in text.lower()


def _check_whole(value: Any, where: str) -> None:
    """Raises DataError for half a surrogate pair in any text: it is no character, and no tokenizer takes it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise DataError(f"{where}: holds half of a surrogate pair, in {around}; write the whole character, or take it out") from None


def _csv_rows(text: str, uri: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_FIELD)
    reader, begun = csv.DictReader(io.StringIO(text), strict=True), 1  # strict: else a quote that is not closed swallows the rows behind it
    try:
        columns = len(reader.fieldnames or ())
        begun = reader.line_num + 1
        for number, row in enumerate(reader):
            if None in row:
                raise DataError(
                    f"{uri}: row {number}, which begins in line {begun}, has {columns + len(row[None])} fields and the header {columns}; "
                    "quote the fields that hold a comma"
                )
            yield number, dict(row)
            begun = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{uri}: what begins in line {begun} cannot be read: {error}; is a quote not closed there?") from None


def _listed(loaded: Any, uri: str) -> list[Row]:
    """The rows of a JSON file: a list, `{"data": [...]}`, or an object of objects by id."""
    if isinstance(loaded, dict) and isinstance(loaded.get("data"), list):
        loaded = loaded["data"]
    if isinstance(loaded, dict) and loaded and all(isinstance(row, dict) for row in loaded.values()):
        loaded = [{"id": name, **row} for name, row in loaded.items()]
    if not isinstance(loaded, list) or not all(isinstance(row, dict) for row in loaded):
        raise DataError(
            f"{uri}: no list of rows: a list, {{'data': [...]}} or an object of rows by id is read; "
            "take files that are not this benchmark's out of the folder"
        )
    return loaded


def _parquet_rows(store: Store, key: str) -> Iterator[tuple[int, Row]]:
    file = _opened(store, key)
    light = [name for name in file.schema_arrow.names if not name.startswith("image") or name == "image_id"]
    heavy = [name for name in file.schema_arrow.names if name not in light]
    leaves = set(file.schema.names) if not heavy else {column.path for column in map(file.schema.column, range(len(file.schema.names)))}
    thin = {name: f"{name}.path" if f"{name}.path" in leaves else name for name in heavy}  # enough to see whether there is an image
    beside = {name: _without_bytes(file, name) if thin[name] != name else set() for name in heavy}
    number = 0
    for batch in file.iter_batches(columns=[*light, *thin.values()], batch_size=256):
        for row in batch.to_pylist():
            for name in heavy:
                if number in beside[name]:
                    row[name] = row[name] and row[name]["path"]
                elif row[name] is not None and not isinstance(row[name], str):
                    row[name] = InParquet(store, key, number, name)
            yield number, row
            number += 1


def _without_bytes(file: pq.ParquetFile, name: str) -> set[int]:
    """Rows whose image is no more than a path. The files' own counts of what is missing spare reading the images of most."""
    found: set[int] = set()
    first = 0
    for group in range(file.metadata.num_row_groups):
        part = file.metadata.row_group(group)
        body = next((each for each in map(part.column, range(part.num_columns)) if each.path_in_schema == f"{name}.bytes"), None)
        if body is None:
            found.update(range(first, first + part.num_rows))
        elif not (body.is_stats_set and body.statistics.has_null_count and body.statistics.null_count == 0):
            bodies = pc.struct_field(file.read_row_group(group, columns=[body.path_in_schema]).column(name), "bytes")
            found.update(first + place for place, missing in enumerate(bodies.is_null().to_pylist()) if missing)
        first += part.num_rows
    return found


def _opened(store: Store, key: str) -> pq.ParquetFile:
    try:
        return parquet.opened(_read_file(store, key))
    except (ValueError, OSError) as error:
        raise DataError(f"{store.uri_of(key)}: not a parquet file that can be read: {error}") from None


@lru_cache(maxsize=64)
def _footer(store: Store, key: str) -> pq.FileMetaData:
    return footer_of(store, key)


@lru_cache(maxsize=4)
def _group(store: Store, key: str, group: int, column: str) -> list[Any]:
    return read_column(store, key, _footer(store, key), group, column)


@lru_cache(maxsize=64)
def _cell(store: Store, key: str, row: int, column: str) -> Any:
    """Kept for a while: a prompt's images are read several times, and its shots are of more row groups than can be kept."""
    metadata, first = _footer(store, key), 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            return _group(store, key, group, column)[row - first]
        first += rows
    raise SampleError(f"{store.uri_of(key)}: has no row {row}")


@lru_cache(maxsize=8)
def _frames(store: Store, key: str) -> tuple[bytes, ...]:
    return video_frames(_read_file(store, key), fps=1.0, most=MAX_FRAMES)[0]


def count_frames(store: Store, key: str) -> int:
    return len(_frames(store, key))


@lru_cache(maxsize=65_536)
def _file_digest(store: Store, key: str) -> bytes:
    """Kept, since many questions may be about one file."""
    return _digest(_read_file(store, key))


def _digest(body: bytes) -> bytes:
    return xxhash.xxh3_128_digest(body)


def _read_file(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except NotFound:
        raise SampleError(f"{store.uri_of(key)}: not there") from None
