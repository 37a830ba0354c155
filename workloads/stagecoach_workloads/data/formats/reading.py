"""What all converters share: the input, its files, the images that rows name."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stagecoach.errors import DataError
from stagecoach.storage import NotFound, Store, UriRefused, open_store
from stagecoach_workloads.data.samples import Sample, SampleError, document, image, read_json_object
from stagecoach_workloads.data.writer import Rejected

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Found = Iterator[Sample | Rejected]


@dataclass(frozen=True, kw_only=True)
class Input:
    """What is converted: the format, the files (keys below `uri`), and where named images are."""

    format: str
    uri: str
    files: tuple[str, ...]
    images: str
    category: str
    fps: float = 1.0
    max_frames: int = 64
    pdf_side: int = 1344


@lru_cache(maxsize=2)
def json_rows(uri: str, key: str) -> list[Any]:
    """Rows of a JSON list, of JSON lines, or of `{"data": [...]}`. A line that is no JSON stays as its text, to be rejected."""
    body = open_store(uri).read(key)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}/{key}: not UTF-8 (byte {error.start})") from None
    if not key.lower().endswith((".jsonl", ".ndjson")):
        try:
            loaded = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{uri}/{key}: not JSON: {error}") from None
        return loaded if isinstance(loaded, list) else [loaded]
    return [_line(line) for line in text.splitlines() if line.strip()]


def _line(line: str) -> Any:
    try:
        return read_json_object(line.encode())
    except SampleError as error:
        return str(error)


def count_json(given: Input, key: str) -> int:
    return len(json_rows(given.uri, key))


def one_row(_given: Input, _key: str) -> int:
    return 1


@lru_cache(maxsize=8)
def store_of(uri: str) -> Store:
    return open_store(uri)


def named_image(given: Input, name: Any) -> bytes:
    """The image file below `--images`. Raises DataError for an address, a path that leaves the folder, or a missing file."""
    if not isinstance(name, str) or not name:
        raise SampleError(f"names image {str(name)[:60]!r}; the path of a file is expected")
    if "://" in name:
        raise SampleError(f"names the address {name[:80]}; download the images first and give their folder with --images")
    try:
        return store_of(given.images).read(name.removeprefix("./"))
    except NotFound:
        raise SampleError(f"its image {name} is not in {given.images}") from None
    except UriRefused as error:
        raise SampleError(f"its image path is refused: {error}") from None


def key_for(key: str, number: int) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", key.rsplit("/", 1)[-1].rsplit(".", 1)[0])[:50]
    return f"{stem or 'file'}-{number:08d}"


def pair_of(given: Input, key: str, picture: bytes, text: str) -> Sample:
    return Sample(key=key, kind="pairs", category=given.category, turns=document(image(0), text), images=(picture,))


def read_rows(given: Input, key: str, begin: int, end: int, make: Callable[[Input, dict[str, Any], str], Sample]) -> Found:
    """Rows of a JSON file through `make`; what it raises becomes the reason of a rejection."""
    for number, row in enumerate(json_rows(given.uri, key)[begin:end], begin):
        try:
            if not isinstance(row, dict):
                raise SampleError(row if isinstance(row, str) else f"is a {type(row).__name__}, not an object")
            yield make(given, row, key_for(key, number))
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))
