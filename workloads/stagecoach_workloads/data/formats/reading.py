"""What all converters share: the input, its rows and how much each will weigh, the images that rows name."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stagecoach.errors import DataError
from stagecoach.storage import NotFound, Store, UriRefused, open_store
from stagecoach_workloads.data.images import ImageRefused, decode
from stagecoach_workloads.data.samples import Sample, SampleError, check_sample, document, image, read_json_object, to_json
from stagecoach_workloads.data.writer import Rejected

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ROW_BYTES = 1024  # what a sample takes in a shard beside its parts: headers, padding, the frame of its JSON
IMAGES_LOOKED_AT = 32  # at most, for the mean size of the images that a file's rows name
LONGEST_NAME = 255  # bytes of a file's name, in every store that we know
Found = Iterator[Sample | Rejected]


@dataclass(frozen=True, kw_only=True)
class Input:
    """What is converted: the format, the folder of its files, where named images are. `kind`: samples of others are rejected."""

    format: str
    uri: str
    images: str
    category: str
    kind: str = ""
    fps: float = 1.0
    max_frames: int = 64
    pdf_side: int = 1344


@lru_cache(maxsize=2)
def json_rows(uri: str, key: str) -> list[Any]:
    """Rows of a JSON list or of JSON lines; a file that is one JSON value is one row. A line that is no JSON object stays as the reason
    why not, to be rejected. Raises DataError for a file that is not UTF-8 or not JSON."""
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


def weigh_rows(given: Input, size: int, names: Sequence[Sequence[Any]]) -> list[int]:
    """About how many bytes each row of a file of `size` bytes becomes in a shard. `names` are the images that each row names."""
    own = size // max(1, len(names)) + ROW_BYTES
    picture = _mean_bytes(given, [name for some in names for name in some])
    return [own + picture * len(some) for some in names]


def _mean_bytes(given: Input, names: Sequence[Any]) -> int:
    """Mean size of some of the images, evenly spread. What is no path or is not there is left out: its row will be rejected."""
    sizes: list[int] = []
    for name in names[:: max(1, -(-len(names) // IMAGES_LOOKED_AT))]:
        with suppress(SampleError, NotFound, UriRefused):
            sizes.append(store_of(given.images).stat(_path_of(name)).size)
    return sum(sizes) // max(1, len(sizes))


@lru_cache(maxsize=8)
def store_of(uri: str) -> Store:
    return open_store(uri)


def named_image(given: Input, name: Any) -> bytes:
    """The image file below `--images`. Raises DataError for an address, a path that leaves the folder, or a missing file."""
    path = _path_of(name)
    try:
        return store_of(given.images).read(path)
    except NotFound:
        raise SampleError(f"its image {name} is not in {given.images}") from None
    except UriRefused as error:
        raise SampleError(f"its image path is refused: {error}") from None


def _path_of(name: Any) -> str:
    """The path of a named image below `--images`. Raises SampleError for what can be none."""
    if not isinstance(name, str) or not name:
        raise SampleError(f"names image {str(name)[:60]!r}; the path of a file is expected")
    if "://" in name:
        raise SampleError(
            f"names the address {name[:80]}, and nothing is downloaded: download the images first and name each by its path below --images "
            "where the address stands now"
        )
    if max(len(part.encode(errors="replace")) for part in name.split("/")) > LONGEST_NAME:  # an image as base64, say
        raise SampleError(f"names image {name[:60]!r}... of {len(name):,} characters; the path of a file is expected")
    if not _is_unicode(name):
        raise SampleError(f"names image {name[:60]!r}, which is half a surrogate pair and no text; the path of a file is expected")
    return name.removeprefix("./")


def _is_unicode(text: str) -> bool:
    r"""False for half a surrogate pair: JSON can say "\ud800", UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def key_for(key: str, number: int) -> str:
    """The sample's key: the file's name to be read by people, a digest of its whole path (a/1.jpg, b/1.jpg and a/1.png differ), the row."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", key.rsplit("/", 1)[-1].rsplit(".", 1)[0])[:40]
    return f"{stem or 'file'}-{hashlib.sha256(key.encode()).hexdigest()[:16]}-{number:08d}"


def checked(sample: Sample) -> Sample:
    """The sample, once its parts fit together and each image was decoded as training will: a header does not tell that a file is cut off.

    Raises SampleError or ImageRefused.
    """
    check_sample(sample)
    try:
        to_json(sample)
    except ValueError as error:  # half a surrogate pair, or a number that is none: JSON can be read with both
        raise SampleError(f"cannot be written as JSON in UTF-8: {error}") from None
    for number, body in enumerate(sample.images):
        try:
            decode(body, at_least=(1, 1))  # every byte of a JPEG is read, most of its arithmetic is spared
        except ImageRefused as error:
            raise ImageRefused(f"image {number}: {error}" if len(sample.images) > 1 else str(error)) from None
    return sample


def pair_of(given: Input, key: str, picture: bytes, text: str) -> Sample:
    return Sample(key=key, kind="pairs", category=given.category, turns=document(image(0), text), images=(picture,))


def read_rows(given: Input, key: str, begin: int, end: int, make: Callable[[Input, dict[str, Any], str], Sample]) -> Found:
    """Rows of a JSON file through `make`; what it raises becomes the reason of a rejection."""
    for number, row in enumerate(json_rows(given.uri, key)[begin:end], begin):
        try:
            if not isinstance(row, dict):
                raise SampleError(row if isinstance(row, str) else f"is a {type(row).__name__}, not an object")
            yield checked(make(given, row, key_for(key, number)))
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))
