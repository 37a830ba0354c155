"""`stagecoach data convert`: from what people have to a dataset. Field names are the public sources' own, named at each reader.

Every reader yields samples, or `Rejected` with the reason for a row it cannot use. Images that are named are read below one folder
(`--images`), never from an address inside the data: nothing is downloaded and nothing outside the folder is opened.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from stagecoach import __version__
from stagecoach.contract.dataset import DatasetManifest
from stagecoach.errors import ConfigError, DataError, StagecoachError
from stagecoach.storage import NotFound, Store, UriRefused, open_store
from stagecoach_workloads.data import media, tar
from stagecoach_workloads.data.samples import Content, Sample, SampleError, Turn, document, from_json, image, read_json_object
from stagecoach_workloads.data.writer import Rejected, WriteSettings, say_nothing, write_dataset

ROWS_PER_UNIT = 2000
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"\s*<image>\s*")
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
    folder, files = _files(source, FORMATS[format].suffixes)
    given = Input(format=format, uri=folder, files=files, images=images or folder, category=category, fps=fps)
    units = tuple(unit for key in files for unit in _units(given, key))
    if not units:
        raise DataError(f"{source}: {len(files)} file(s) of format {format} hold no rows")
    store = open_store(folder)
    sizes = {key: store.stat(key).size for key in files}
    settings = WriteSettings(
        kind=FORMATS[format].kind,
        recipe={"format": format, "source": folder, "files": sizes, "images": given.images, "category": category, "fps": fps},
        licence=licence,
        made_by=f"stagecoach data convert --from {format} {__version__}",
        reject_budget=budget,
        workers=workers,
    )
    return write_dataset(open_store(target), settings, units=len(units), job=ConvertJob(given, units), on_unit=on_unit)


def _files(source: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
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
    rows = FORMATS[given.format].rows(given, key)
    for begin in range(0, rows, ROWS_PER_UNIT):
        yield key, begin, min(begin + ROWS_PER_UNIT, rows)


# --- reading files -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _json_rows(uri: str, key: str) -> list[Any]:
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


def _count_json(given: Input, key: str) -> int:
    return len(_json_rows(given.uri, key))


def _one(_given: Input, _key: str) -> int:
    return 1


@lru_cache(maxsize=8)
def _store(uri: str) -> Store:
    return open_store(uri)


def _named_image(given: Input, name: Any) -> bytes:
    """The image file below `--images`. Raises DataError for an address, a path that leaves the folder, or a missing file."""
    if not isinstance(name, str) or not name:
        raise SampleError(f"names image {str(name)[:60]!r}; the path of a file is expected")
    if "://" in name:
        raise SampleError(f"names the address {name[:80]}; download the images first and give their folder with --images")
    try:
        return _store(given.images).read(name.removeprefix("./"))
    except NotFound:
        raise SampleError(f"its image {name} is not in {given.images}") from None
    except UriRefused as error:
        raise SampleError(f"its image path is refused: {error}") from None


def _key_for(key: str, number: int) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", key.rsplit("/", 1)[-1].rsplit(".", 1)[0])[:50]
    return f"{stem or 'file'}-{number:08d}"


def _pair(given: Input, key: str, picture: bytes, text: str) -> Sample:
    return Sample(key=key, kind="pairs", category=given.category, turns=document(image(0), text), images=(picture,))


def _rows(given: Input, key: str, begin: int, end: int, make: Callable[[Input, dict[str, Any], str], Sample]) -> Found:
    """Rows of a JSON file through `make`; what it raises becomes the reason of a rejection."""
    for number, row in enumerate(_json_rows(given.uri, key)[begin:end], begin):
        try:
            if not isinstance(row, dict):
                raise SampleError(row if isinstance(row, str) else f"is a {type(row).__name__}, not an object")
            yield make(given, row, _key_for(key, number))
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))


# --- formats -----------------------------------------------------------------------------------------------------------------


def _llava(given: Input, row: dict[str, Any], key: str) -> Sample:
    """LLaVA's and ShareGPT's: `id`, `image` (a path or a list), `conversations` of `from`/`value`; <image> in the text marks the place
    (haotian-liu/LLaVA docs/Finetune_Custom_Data.md)."""
    named = row.get("image", row.get("images", []))
    names = [named] if isinstance(named, str) else list(named or [])
    turns: list[Turn] = []
    shown = 0
    for said in row.get("conversations") or row.get("messages") or []:
        role = _ROLES.get(str(said.get("from", said.get("role", ""))))
        value = said.get("value", said.get("content"))
        if role is None or not isinstance(value, str):
            raise SampleError(f"a turn is by {said.get('from', said.get('role'))!r} with a value of type {type(value).__name__}")
        content = _with_images(value, shown)
        shown += sum(not isinstance(part, str) for part in content)
        turns.append(Turn(role, tuple(content)))
    if shown == 0 and names and turns:  # some sets leave the placeholder out: images then come first
        first = next((place for place, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, (*(image(number) for number in range(len(names))), *turns[first].content))
        shown = len(names)
    if shown != len(names):
        raise SampleError(f"has {len(names)} images and {shown} <image> placeholders")
    images = tuple(_named_image(given, name) for name in names)
    return Sample(
        key=key,
        kind="conversation",
        category=given.category,
        turns=tuple(turns),
        images=images,
        extra={"source_id": str(row.get("id", ""))},
    )


def _with_images(text: str, first: int) -> list[Content]:
    """Text with <image> marks as content; images count from `first`."""
    parts = _PLACEHOLDER.split(text)
    content: list[Content] = [parts[0]] if parts[0] else []
    for number, part in enumerate(parts[1:]):
        content.append(image(first + number))
        if part:
            content.append(part)
    return content


def _preference(given: Input, row: dict[str, Any], key: str) -> Sample:
    """`prompt`, `chosen`, `rejected`, and `image` or `images` (TRL's and most preference sets' names); `question` for `prompt` too."""
    prompt = row.get("prompt", row.get("question"))
    answers = [row.get("chosen"), row.get("rejected")]
    if not isinstance(prompt, str) or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise SampleError("needs the texts `prompt`, `chosen` and `rejected`")
    named = row.get("image", row.get("images", []))
    names = [named] if isinstance(named, str) else list(named or [])
    content = _with_images(prompt, 0)
    if not any(not isinstance(part, str) for part in content):
        content = [*(image(number) for number in range(len(names))), *content]
    turns = (Turn("user", tuple(content)), Turn("chosen", (str(answers[0]),)), Turn("rejected", (str(answers[1]),)))
    return Sample(key=key, kind="preference", category=given.category, turns=turns, images=tuple(_named_image(given, n) for n in names))


def _text(given: Input, row: dict[str, Any], key: str) -> Sample:
    """`text`, as in most JSON-lines corpora; `content` too."""
    text = row.get("text", row.get("content"))
    if not isinstance(text, str):
        raise SampleError(f"has no `text` (its fields: {', '.join(sorted(row)[:8])})")
    return Sample(key=key, kind="text", category=given.category, turns=document(text))


def _coco(given: Input, key: str, begin: int, end: int) -> Found:
    """COCO captions: `images` of `id`, `file_name`; `annotations` of `image_id`, `caption` (cocodataset.org/#format-data, 5)."""
    loaded = _json_rows(given.uri, key)[0]
    names = {item["id"]: item["file_name"] for item in loaded.get("images", []) if isinstance(item, dict)}
    for number, note in enumerate(loaded["annotations"][begin:end], begin):
        try:
            caption = note.get("caption")
            if note.get("image_id") not in names or not isinstance(caption, str):
                raise SampleError(f"annotation has image_id {note.get('image_id')!r} and caption {str(caption)[:40]!r}")
            body = _named_image(given, names[note["image_id"]])
            yield Sample(
                key=_key_for(key, number), kind="pairs", category=given.category, turns=document(image(0), caption.strip()), images=(body,)
            )
        except DataError as error:
            yield Rejected(f"{key} annotation {number}", str(error))


def _count_coco(given: Input, key: str) -> int:
    loaded = _json_rows(given.uri, key)[0]
    notes = loaded.get("annotations") if isinstance(loaded, dict) else None
    if not isinstance(notes, list):
        raise DataError(f"{given.uri}/{key}: has no list `annotations`; COCO's captions file (captions_*.json) is expected")
    return len(notes)


@lru_cache(maxsize=2)
def _table(uri: str, key: str) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(open_store(uri).read(key)))
    except StagecoachError:
        raise
    except Exception as error:  # Arrow raises many kinds
        raise DataError(f"{uri}/{key}: not a parquet file: {error}") from None


def _interleaved(given: Input, key: str, begin: int, end: int) -> Found:
    """OBELICS and MINT-1T: `images` and `texts` of equal length, one of both None at each place (HuggingFaceM4/OBELICS on the Hub).

    An image is bytes, a {bytes, path} struct, or a path below --images."""
    table = _table(given.uri, key)
    for number, row in enumerate(table.slice(begin, end - begin).select(["images", "texts"]).to_pylist(), begin):
        try:
            pictures, texts = row["images"] or [], row["texts"] or []
            if len(pictures) != len(texts):
                raise SampleError(f"`images` has {len(pictures)} entries and `texts` {len(texts)}")
            content: list[Content] = []
            bodies: list[bytes] = []
            for picture, text in zip(pictures, texts, strict=True):
                if picture is not None:
                    content.append(image(len(bodies)))
                    bodies.append(_bytes_of(given, picture))
                if text:
                    content.append(text)
            yield Sample(
                key=_key_for(key, number), kind="interleaved", category=given.category, turns=document(*content), images=tuple(bodies)
            )
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))


def _bytes_of(given: Input, picture: Any) -> bytes:
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    return picture if isinstance(picture, bytes) else _named_image(given, picture)


def _count_interleaved(given: Input, key: str) -> int:
    table = _table(given.uri, key)
    missing = {"images", "texts"} - set(table.column_names)
    if missing:
        raise DataError(f"{given.uri}/{key}: has no column {', '.join(sorted(missing))}; its columns are {', '.join(table.column_names)}")
    return int(table.num_rows)


def _image_text(given: Input, key: str, _begin: int, _end: int) -> Found:
    """A folder of images with a text file of the same name beside each (x.jpg, x.txt)."""
    store = _store(given.uri)
    try:
        text = store.read(key.rsplit(".", 1)[0] + ".txt").decode("utf-8").strip()
        yield _pair(given, _key_for(key, 0), store.read(key), text)
    except NotFound:
        yield Rejected(key, "has no .txt file beside it")
    except UnicodeDecodeError as error:
        yield Rejected(key, f"its text is not UTF-8 (byte {error.start})")


def _pdf(given: Input, key: str, _begin: int, _end: int) -> Found:
    """Pages as images with the text on them (PDFA, IDL: recipes.md 2.1)."""
    for number, page in enumerate(media.pdf_pages(_store(given.uri).read(key), side=given.pdf_side)):
        if isinstance(page, str):
            yield Rejected(f"{key} page {number + 1}", page)
        else:
            body, text = page
            yield _pair(given, _key_for(key, number), body, text)


def _video(given: Input, key: str, _begin: int, _end: int) -> Found:
    """A video with its caption in a .txt, or with LLaVA's `conversations` in a .json of the same name beside it; frames by time."""
    store, stem = _store(given.uri), key.rsplit(".", 1)[0]
    try:
        frames, times = media.video_frames(store.read(key), fps=given.fps, most=given.max_frames)
        shown: tuple[Content, ...] = tuple(image(number) for number in range(len(frames)))
        if store.exists(f"{stem}.json"):
            row = read_json_object(store.read(f"{stem}.json"))
            told = _llava(given, {key: value for key, value in row.items() if key not in ("image", "images", "video")}, _key_for(key, 0))
            turns = (Turn(told.turns[0].role, (*shown, *told.turns[0].content)), *told.turns[1:])
        else:
            turns = document(*shown, store.read(f"{stem}.txt").decode("utf-8").strip())
        yield Sample(key=_key_for(key, 0), kind="video", category=given.category, turns=turns, images=frames, extra={"times": times})
    except (DataError, UnicodeDecodeError, IndexError) as error:
        yield Rejected(key, str(error))
    except NotFound:
        yield Rejected(key, "has neither a .txt nor a .json file beside it")


def _webdataset(given: Input, key: str, _begin: int, _end: int) -> Found:
    """WebDataset tars: members of one sample share the name up to its first dot; an image, and its text as .txt, .caption or in .json
    (`caption` or `text`, as img2dataset writes it), or one of our own samples."""
    groups: dict[str, dict[str, bytes]] = {}
    for member in tar.read_members(_store(given.uri).read(key), shard=f"{given.uri}/{key}"):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        group = groups.setdefault(f"{folder}/{stem}", {})
        if suffix in group:
            raise tar.ShardError(f"{given.uri}/{key}: key {stem} has two members .{suffix}, the second at byte {member.offset:,}")
        group[suffix] = member.body
    for number, (name, members) in enumerate(groups.items()):
        try:
            yield replace(_from_members(given, members), key=_key_for(key, number))
        except DataError as error:
            yield Rejected(f"{key} key {name.strip('/')}", str(error))


def _from_members(given: Input, members: dict[str, bytes]) -> Sample:
    pictures = [body for suffix, body in members.items() if f".{suffix.lower()}".endswith(_IMAGES)]
    loaded = read_json_object(members["json"]) if "json" in members else {}
    if "turns" in loaded:
        return from_json(members["json"], key="k", images=tuple(pictures))
    text = next((members[suffix].decode("utf-8", "strict") for suffix in ("txt", "caption", "text") if suffix in members), None)
    text = text if text is not None else loaded.get("caption") or loaded.get("text")
    if not isinstance(text, str) or len(pictures) != 1:
        raise SampleError(f"has the parts {', '.join(sorted(members))}; one image and one text are expected")
    return _pair(given, "k", pictures[0], text.strip())


def _of_rows(make: Callable[[Input, dict[str, Any], str], Sample]) -> Callable[[Input, str, int, int], Found]:
    return lambda given, key, begin, end: _rows(given, key, begin, end, make)


_JSON: Sequence[str] = (".json", ".jsonl", ".ndjson")
FORMATS: dict[str, Format] = {
    "llava": Format("conversation", tuple(_JSON), _of_rows(_llava), _count_json),
    "coco": Format("pairs", (".json",), _coco, _count_coco),
    "obelics": Format("interleaved", (".parquet",), _interleaved, _count_interleaved),
    "image-text": Format("pairs", _IMAGES, _image_text, _one),
    "pdf": Format("pairs", (".pdf",), _pdf, _one),
    "video": Format("video", (".mp4", ".webm", ".mkv", ".mov", ".avi"), _video, _one),
    "jsonl": Format("text", (".jsonl", ".ndjson"), _of_rows(_text), _count_json),
    "preference": Format("preference", tuple(_JSON), _of_rows(_preference), _count_json),
    "webdataset": Format("pairs", (".tar",), _webdataset, _one),
}
