"""Formats that bring their images along: OBELICS/MINT-1T parquet, image folders, PDFs, videos, WebDataset tars."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stagecoach.contract.names import whole_number
from stagecoach.errors import DataError, StagecoachError
from stagecoach.storage import NotFound, open_store
from stagecoach_workloads.data import media, parquet, tar
from stagecoach_workloads.data.formats.reading import (
    IMAGE_SUFFIXES,
    ROW_BYTES,
    Found,
    Input,
    checked,
    key_for,
    named_image,
    pair_of,
    store_of,
    weigh_rows,
)
from stagecoach_workloads.data.formats.rows import llava
from stagecoach_workloads.data.samples import Content, Sample, SampleError, Turn, document, from_json, image, read_json_object
from stagecoach_workloads.data.writer import Rejected


@lru_cache(maxsize=2)
def _table(uri: str, key: str) -> Any:
    try:
        return parquet.from_bytes(open_store(uri).read(key))
    except StagecoachError:
        raise
    except Exception as error:  # Arrow raises many kinds
        raise DataError(f"{uri}/{key}: not a parquet file: {error}") from None


def interleaved(given: Input, key: str, begin: int, end: int) -> Found:
    """OBELICS and MINT-1T: `images` and `texts` of equal length, one of both None at each place (HuggingFaceM4/OBELICS on the Hub).

    An image is bytes, a {bytes, path} struct, or a path below --images."""
    table = _table(given.uri, key)
    for number, row in enumerate(table.slice(begin, end - begin).select(["images", "texts"]).to_pylist(), begin):
        try:
            pictures, texts = row["images"] or [], row["texts"] or []
            if not isinstance(pictures, list) or not isinstance(texts, list):
                raise SampleError(f"`images` is a {type(pictures).__name__} and `texts` a {type(texts).__name__}; both are lists")
            if len(pictures) != len(texts):
                raise SampleError(f"`images` has {len(pictures)} entries and `texts` {len(texts)}")
            content: list[Content] = []
            bodies: list[bytes] = []
            for picture, text in zip(pictures, texts, strict=True):
                if picture is not None:
                    content.append(image(len(bodies)))
                    bodies.append(_bytes_of(given, picture))
                if isinstance(text, str) and text:
                    content.append(text)
                elif text is not None and not isinstance(text, str):
                    raise SampleError(f"`texts` holds a {type(text).__name__}")
            made = key_for(key, number)
            yield checked(Sample(key=made, kind="interleaved", category=given.category, turns=document(*content), images=tuple(bodies)))
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))


def _bytes_of(given: Input, picture: Any) -> bytes:
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    return picture if isinstance(picture, bytes) else named_image(given, picture)


def weigh_interleaved(given: Input, key: str, size: int) -> list[int]:
    """About how many bytes each row becomes. Raises DataError for a file without the two columns."""
    table = _table(given.uri, key)
    missing = {"images", "texts"} - set(table.column_names)
    if missing:
        raise DataError(f"{given.uri}/{key}: has no column {', '.join(sorted(missing))}; its columns are {', '.join(table.column_names)}")
    return weigh_rows(given, size, _names_in(table.column("images")))


def _names_in(images: Any) -> list[list[Any]]:
    """The paths that each row of the column names; none where the images themselves are in it."""
    nothing: list[list[Any]] = [[] for _ in range(len(images))]
    if not (pa.types.is_list(images.type) or pa.types.is_large_list(images.type)):
        return nothing
    part = images.type.value_type
    if pa.types.is_struct(part) and part.get_field_index("bytes") >= 0:
        bodies = pc.struct_field(pc.list_flatten(images), "bytes")
        if bodies.null_count < len(bodies):
            return nothing
    elif not (pa.types.is_string(part) or pa.types.is_large_string(part)):
        return nothing
    named = [[item.get("path") if isinstance(item, dict) else item for item in row or []] for row in images.to_pylist()]
    return [[name for name in row if name is not None] for row in named]


def one_file(growth: float) -> Callable[[Input, str, int], list[int]]:
    """Weighs files that are one row each and become about `growth` times as large as they are."""
    return lambda _given, _key, size: [ROW_BYTES + int(size * growth)]


def image_text(given: Input, key: str, _begin: int, _end: int) -> Found:
    """A folder of images with a text file of the same name beside each (x.jpg, x.txt): img2dataset's `output_format=files`
    (rom1504/img2dataset, README), invoke-training's "image caption directory" (invoke-ai.github.io/invoke-training, Dataset Formats)."""
    store = store_of(given.uri)
    try:
        text = store.read(key.rsplit(".", 1)[0] + ".txt").decode("utf-8").strip()
        yield checked(pair_of(given, key_for(key, 0), store.read(key), text))
    except NotFound:
        yield Rejected(key, "has no .txt file beside it")
    except UnicodeDecodeError as error:
        yield Rejected(key, f"its text is not UTF-8 (byte {error.start})")
    except DataError as error:
        yield Rejected(key, str(error))


def pdf(given: Input, key: str, _begin: int, _end: int) -> Found:
    """Pages as images with the text on them (PDFA, IDL: recipes.md 2.1)."""
    for number, page in enumerate(media.pdf_pages(store_of(given.uri).read(key), side=given.pdf_side)):
        if isinstance(page, str):
            yield Rejected(f"{key} page {number + 1}", page)
        else:
            body, text = page
            yield pair_of(given, key_for(key, number), body, text)


def video(given: Input, key: str, _begin: int, _end: int) -> Found:
    """A video with its caption in a .txt, or with LLaVA's `conversations` in a .json of the same name beside it; frames by time."""
    store, stem = store_of(given.uri), key.rsplit(".", 1)[0]
    try:
        frames, times = media.video_frames(store.read(key), fps=given.fps, most=given.max_frames)
        shown: tuple[Content, ...] = tuple(image(number) for number in range(len(frames)))
        if store.exists(f"{stem}.json"):
            row = read_json_object(store.read(f"{stem}.json"))
            told = llava(given, {key: value for key, value in row.items() if key not in ("image", "images", "video")}, key_for(key, 0))
            turns = (Turn(told.turns[0].role, (*shown, *told.turns[0].content)), *told.turns[1:])
        else:
            turns = document(*shown, store.read(f"{stem}.txt").decode("utf-8").strip())
        made = key_for(key, 0)
        yield checked(Sample(key=made, kind="video", category=given.category, turns=turns, images=frames, extra={"times": times}))
    except (DataError, UnicodeDecodeError, IndexError) as error:
        yield Rejected(key, str(error))
    except NotFound:
        yield Rejected(key, "has neither a .txt nor a .json file beside it")


def webdataset(given: Input, key: str, _begin: int, _end: int) -> Found:
    """WebDataset tars: members of one sample share the name up to its first dot. A sample is one of our own, of any kind (its .json has
    `turns`), or one image with its text as .txt, .caption, .text, or in .json as `caption` or `text` (as img2dataset writes them). Samples
    of another kind than the dataset's are rejected: what a stage makes of a sample, it decides by the kind."""
    for number, (name, members) in enumerate(_groups(given, key)):
        try:
            sample = replace(_from_members(given, members), key=key_for(key, number))
            if given.kind and sample.kind != given.kind:
                raise SampleError(f"is of kind {sample.kind}, the dataset of kind {given.kind}; --kind {sample.kind} makes one of these")
            yield checked(sample)
        except DataError as error:
            yield Rejected(f"{key} key {name}", str(error))


def kinds_in(given: Input, key: str) -> Counter[str]:
    """How many samples of each kind the tar holds; what is no sample is left out."""
    found: Counter[str] = Counter()
    for _, members in _groups(given, key):
        with suppress(DataError):
            found[_from_members(given, members).kind] += 1
    return found


def _groups(given: Input, key: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by suffix) of each sample of the tar. Raises ShardError for a damaged tar and for two members of one name."""
    groups: dict[str, dict[str, tar.Member]] = {}
    for member in tar.read_members(store_of(given.uri).read(key), shard=f"{given.uri}/{key}"):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        group, suffix = groups.setdefault(f"{folder}/{stem}", {}), suffix.lower()  # as webdataset itself takes them
        if suffix in group:
            places = f"at bytes {group[suffix].offset:,} and {member.offset:,}"
            raise tar.ShardError(f"{given.uri}/{key}: key {stem} has two members .{suffix}, {places}")
        group[suffix] = member
    for name, members in groups.items():
        yield name.strip("/"), {suffix: member.body for suffix, member in members.items()}


def _from_members(given: Input, members: dict[str, bytes]) -> Sample:
    ordered = sorted(members.items(), key=lambda member: whole_number(member[0].partition(".")[0]) or 0)  # 2.jpg before 10.jpg
    pictures = [body for suffix, body in ordered if f".{suffix}".endswith(IMAGE_SUFFIXES)]
    loaded = read_json_object(members["json"]) if "json" in members else {}
    if "turns" in loaded:
        return from_json(members["json"], key="k", images=tuple(pictures))
    text = next((_as_text(members[suffix]) for suffix in ("txt", "caption", "text") if suffix in members), None)
    text = text if text is not None else loaded.get("caption") or loaded.get("text")
    if not isinstance(text, str) or len(pictures) != 1:
        raise SampleError(
            f"has the parts {', '.join(sorted(members))}; expected are one image and one text, or a sample of ours (`turns` in .json)"
        )
    return pair_of(given, "k", pictures[0], text.strip())


def _as_text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8 (byte {error.start})") from None
