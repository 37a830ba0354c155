"""`stagecoach data convert`: from what people have to a dataset. Field names are the public sources' own, named at each reader.

Every reader yields samples, or `Rejected` with the reason for a row it cannot use. Images that are named are read below one folder
(`--images`), never from an address inside the data: nothing is downloaded and nothing outside the folder is opened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stagecoach import __version__
from stagecoach.contract.dataset import DatasetManifest
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import open_store
from stagecoach_workloads.data.formats import files, rows
from stagecoach_workloads.data.formats.reading import IMAGE_SUFFIXES, Found, Input, count_json, one_row, read_rows
from stagecoach_workloads.data.samples import Sample
from stagecoach_workloads.data.writer import WriteSettings, say_nothing, write_dataset

ROWS_PER_UNIT = 2000


@dataclass(frozen=True)
class Format:
    """`read(input, file, begin, end)` gives the samples of rows begin to end of a file; `suffixes` are the files it takes."""

    kind: str
    suffixes: tuple[str, ...]
    read: Callable[[Input, str, int, int], Found]
    rows: Callable[[Input, str], int]


@dataclass(frozen=True)
class ConvertJob:
    """Unit u is a stretch of rows of one file."""

    input: Input
    units: tuple[tuple[str, int, int], ...]

    def __call__(self, unit: int) -> Found:
        key, begin, end = self.units[unit]
        return FORMATS[self.input.format].read(self.input, key, begin, end)


def convert(
    source: str,
    target: str,
    *,
    format: str,
    images: str | None = None,
    category: str = "general",
    licence: str = "unknown",
    budget: float = 0.01,
    workers: int = 1,
    fps: float = 1.0,
    on_unit: Callable[[int, int], None] = say_nothing,
) -> DatasetManifest:
    """Converts the file or folder at `source` into a dataset at `target`.

    Raises ConfigError for an unknown format or a source without files of it, DataError when more rows than `budget` cannot be used.
    """
    if format not in FORMATS:
        raise ConfigError(f"--from {format}: no such format; there are {', '.join(FORMATS)}")
    folder, keys = _files_of(source, FORMATS[format].suffixes)
    given = Input(format=format, uri=folder, files=keys, images=images or folder, category=category, fps=fps)
    units = tuple(unit for key in keys for unit in _units(given, key))
    if not units:
        raise DataError(f"{source}: {len(keys)} file(s) of format {format} hold no rows")
    store = open_store(folder)
    sizes = {key: store.stat(key).size for key in keys}
    settings = WriteSettings(
        kind=FORMATS[format].kind,
        recipe={"format": format, "source": folder, "files": sizes, "images": given.images, "category": category, "fps": fps},
        licence=licence,
        made_by=f"stagecoach data convert --from {format} {__version__}",
        reject_budget=budget,
        workers=workers,
    )
    return write_dataset(open_store(target), settings, units=len(units), job=ConvertJob(given, units), on_unit=on_unit)


def _files_of(source: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(folder, keys of the files in it): `source` itself, or every file of the format below it."""
    if source.lower().endswith(suffixes):
        folder, _, key = source.rpartition("/")
        return folder, (key,)
    store = open_store(source)
    found = tuple(info.key for info in store.list() if info.key.lower().endswith(suffixes))
    if not found:
        raise ConfigError(f"{source}: no files ending in {', '.join(suffixes)} there ({len(store.list())} other objects)")
    return source, found


def _units(given: Input, key: str) -> Iterator[tuple[str, int, int]]:
    count = FORMATS[given.format].rows(given, key)
    for begin in range(0, count, ROWS_PER_UNIT):
        yield key, begin, min(begin + ROWS_PER_UNIT, count)


def _of_rows(make: Callable[[Input, dict[str, Any], str], Sample]) -> Callable[[Input, str, int, int], Found]:
    return lambda given, key, begin, end: read_rows(given, key, begin, end, make)


_JSON = (".json", ".jsonl", ".ndjson")
FORMATS: dict[str, Format] = {
    "llava": Format("conversation", _JSON, _of_rows(rows.llava), count_json),
    "coco": Format("pairs", (".json",), rows.coco, rows.count_coco),
    "obelics": Format("interleaved", (".parquet",), files.interleaved, files.count_interleaved),
    "image-text": Format("pairs", IMAGE_SUFFIXES, files.image_text, one_row),
    "pdf": Format("pairs", (".pdf",), files.pdf, one_row),
    "video": Format("video", (".mp4", ".webm", ".mkv", ".mov", ".avi"), files.video, one_row),
    "jsonl": Format("text", (".jsonl", ".ndjson"), _of_rows(rows.text_line), count_json),
    "preference": Format("preference", _JSON, _of_rows(rows.preference), count_json),
    "webdataset": Format("pairs", (".tar",), files.webdataset, one_row),
}
