"""`stagecoach data convert`: from what people have to a dataset. Field names are the public sources' own, named at each reader.

Every reader yields samples, or `Rejected` with the reason for a row it cannot use. Images that are named are read below one folder
(`--images`), never from an address inside the data: nothing is downloaded and nothing outside the folder is opened.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagecoach import __version__
from stagecoach.contract.dataset import DatasetManifest
from stagecoach.contract.records import canonical_json
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import NotFound, open_store
from stagecoach_workloads.data.formats import files, rows
from stagecoach_workloads.data.formats.reading import IMAGE_SUFFIXES, Found, Input, read_rows
from stagecoach_workloads.data.samples import KINDS, Sample
from stagecoach_workloads.data.writer import WriteSettings, say_nothing, write_dataset

UNIT_BYTES = 96 * 1024 * 1024  # a unit becomes one shard of one to two of these
_SHARD_PER_UNIT = 2.3  # a shard is cut only where rows became larger than they were weighed: at 231 MB

Stretch = tuple[str, int, int]  # rows begin to end (excluded) of a file


@dataclass(frozen=True)
class Format:
    """`read(input, file, begin, end)` gives the samples of rows begin to end of a file; `suffixes` are the files it takes.

    `weigh(input, file, size)` says of each row of the file about how many bytes it becomes. A `kind` of None is found in the samples.
    """

    kind: str | None
    suffixes: tuple[str, ...]
    read: Callable[[Input, str, int, int], Found]
    weigh: Callable[[Input, str, int], list[int]]


@dataclass(frozen=True)
class ConvertJob:
    """Unit u is the rows of some stretches, one after another."""

    input: Input
    units: tuple[tuple[Stretch, ...], ...]

    def __call__(self, unit: int) -> Found:
        for key, begin, end in self.units[unit]:
            yield from FORMATS[self.input.format].read(self.input, key, begin, end)


def convert(
    source: str,
    target: str,
    *,
    format: str,
    kind: str | None = None,
    images: str | None = None,
    category: str = "general",
    licence: str = "unknown",
    budget: float = 0.01,
    workers: int = 1,
    fps: float = 1.0,
    unit_bytes: int = UNIT_BYTES,
    on_unit: Callable[[int, int], None] = say_nothing,
) -> DatasetManifest:
    """Converts the file or folder at `source` into a dataset at `target`.

    Raises ConfigError for an unknown format, a source without files of it, a folder of images that is empty, and a `kind` that is not what
    the format makes; DataError when more rows than `budget` cannot be used.
    """
    if format not in FORMATS:
        raise ConfigError(f"--from {format}: no such format; there are {', '.join(FORMATS)}")
    folder, sizes = _files_of(source, format, target)
    if images is not None and not open_store(images).list():
        raise ConfigError(f"--images {images}: nothing stands there")
    given = Input(format=format, uri=folder, images=images or folder, category=category, fps=fps)
    given = replace(given, kind=_kind_of(given, tuple(sizes), kind))
    units = plan_units([(key, FORMATS[format].weigh(given, key, size)) for key, size in sizes.items()], unit_bytes)
    if not units:
        raise DataError(f"{source}: {len(sizes)} file(s) of format {format} hold no rows")
    settings = WriteSettings(
        kind=given.kind,
        recipe={
            "format": format,
            "source": folder,
            "images": given.images,
            "category": category,
            "fps": fps,
            "input": hashlib.sha256(canonical_json([sizes, units])).hexdigest(),  # receipts are of these units or of none
        },
        licence=licence,
        made_by=f"stagecoach data convert --from {format} {__version__}",
        shard_bytes=int(_SHARD_PER_UNIT * unit_bytes),
        reject_budget=budget,
        workers=workers,
    )
    return write_dataset(open_store(target), settings, units=len(units), job=ConvertJob(given, units), on_unit=on_unit)


def _files_of(source: str, format: str, target: str) -> tuple[str, dict[str, int]]:
    """(folder, size in bytes of each file in it): `source` itself, or every file of the format below it. What was written below `target`
    is never taken for input. Raises ConfigError when there is none."""
    suffixes = FORMATS[format].suffixes
    folder, _, name = source.rpartition("/")
    size = _size_of(folder, name) if "." in name and "://" in folder else None
    if size is not None:
        if not name.lower().endswith(suffixes):
            raise ConfigError(f"{source}: --from {format} reads files that end in {', '.join(suffixes)}")
        return folder, {name: size}
    listed = open_store(source).list()
    if not listed:
        raise ConfigError(f"{source}: not there; neither a file nor a folder with files in it")
    own = target.removeprefix(f"{source}/") + "/"
    found = {info.key: info.size for info in listed if info.key.lower().endswith(suffixes) and not info.key.startswith(own)}
    if not found:
        raise ConfigError(f"{source}: no files ending in {', '.join(suffixes)} there ({len(listed)} other objects)")
    return source, found


def _size_of(folder: str, name: str) -> int | None:
    try:
        return open_store(folder).stat(name).size
    except NotFound:
        return None


def _kind_of(given: Input, keys: Sequence[str], asked: str | None) -> str:
    """What the dataset's samples are: what the format makes, what is asked for, or what the first file that holds samples holds."""
    if asked is not None and asked not in KINDS:
        raise ConfigError(f"--kind {asked}: no such kind; there are {', '.join(KINDS)}")
    made = FORMATS[given.format].kind
    if made is not None:
        if asked not in (None, made):
            raise ConfigError(f"--kind {asked}: --from {given.format} makes {made}; leave --kind out")
        return made
    if asked is not None:
        return asked
    for key in keys:
        found = files.kinds_in(given, key)
        if len(found) > 1:
            counts = ", ".join(f"{number:,} of kind {kind}" for kind, number in found.most_common())
            raise ConfigError(f"{given.uri}/{key}: holds samples of several kinds ({counts}); make one dataset of each, with --kind")
        for kind in found:
            return kind
    return "pairs"  # there is none of any kind: every group of members is rejected, with its reason


def plan_units(weighed: Sequence[tuple[str, Sequence[int]]], unit_bytes: int) -> tuple[tuple[Stretch, ...], ...]:
    """Cuts the rows of (file, bytes of each row), in order, into units of about equal weight: `unit_bytes` to twice that, or one unit.

    Small files share a unit, a large one is cut between rows. Equal files give equal units, so a resumed conversion finds its receipts.
    """
    total = sum(sum(weights) for _, weights in weighed)
    count = max(1, total // unit_bytes)
    units: dict[int, list[Stretch]] = {}
    before = 0
    for key, weights in weighed:
        for row, weight in enumerate(weights):
            unit = units.setdefault(before * count // total, [])
            begin = unit.pop()[1] if unit and unit[-1][0] == key else row
            unit.append((key, begin, row + 1))
            before += weight
    return tuple(tuple(unit) for unit in units.values())


def _of_rows(make: Callable[[Input, dict[str, Any], str], Sample]) -> Callable[[Input, str, int, int], Found]:
    return lambda given, key, begin, end: read_rows(given, key, begin, end, make)


_JSON = (".json", ".jsonl", ".ndjson")
FORMATS: dict[str, Format] = {
    "llava": Format("conversation", _JSON, _of_rows(rows.llava), rows.weigh_with_images),
    "coco": Format("pairs", (".json",), rows.coco, rows.weigh_coco),
    "obelics": Format("interleaved", (".parquet",), files.interleaved, files.weigh_interleaved),
    "image-text": Format("pairs", IMAGE_SUFFIXES, files.image_text, files.one_file(1)),
    "pdf": Format("pairs", (".pdf",), files.pdf, files.one_file(8)),  # pages become pictures: 30 x of a text, 1 x of a scan
    "video": Format("video", (".mp4", ".webm", ".mkv", ".mov", ".avi"), files.video, files.one_file(0.25)),  # some frames of it
    "jsonl": Format("text", (".jsonl", ".ndjson"), _of_rows(rows.text_line), rows.weigh_text),
    "preference": Format("preference", _JSON, _of_rows(rows.preference), rows.weigh_with_images),
    "webdataset": Format(None, (".tar",), files.webdataset, files.one_file(1)),
}
