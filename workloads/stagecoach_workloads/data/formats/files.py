"""Formats that bring their images along: OBELICS/MINT-1T parquet, image folders, PDFs, videos, WebDataset tars."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from stagecoach.errors import DataError, StagecoachError
from stagecoach.storage import NotFound, open_store
from stagecoach_workloads.data import media, parquet, tar
from stagecoach_workloads.data.formats.reading import IMAGE_SUFFIXES, Found, Input, key_for, named_image, pair_of, store_of
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
            yield Sample(
                key=key_for(key, number), kind="interleaved", category=given.category, turns=document(*content), images=tuple(bodies)
            )
        except DataError as error:
            yield Rejected(f"{key} row {number}", str(error))


def _bytes_of(given: Input, picture: Any) -> bytes:
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    return picture if isinstance(picture, bytes) else named_image(given, picture)


def count_interleaved(given: Input, key: str) -> int:
    table = _table(given.uri, key)
    missing = {"images", "texts"} - set(table.column_names)
    if missing:
        raise DataError(f"{given.uri}/{key}: has no column {', '.join(sorted(missing))}; its columns are {', '.join(table.column_names)}")
    return int(table.num_rows)


def image_text(given: Input, key: str, _begin: int, _end: int) -> Found:
    """A folder of images with a text file of the same name beside each (x.jpg, x.txt): img2dataset's `output_format=files`
    (rom1504/img2dataset, README), invoke-training's "image caption directory" (invoke-ai.github.io/invoke-training, Dataset Formats)."""
    store = store_of(given.uri)
    try:
        text = store.read(key.rsplit(".", 1)[0] + ".txt").decode("utf-8").strip()
        yield pair_of(given, key_for(key, 0), store.read(key), text)
    except NotFound:
        yield Rejected(key, "has no .txt file beside it")
    except UnicodeDecodeError as error:
        yield Rejected(key, f"its text is not UTF-8 (byte {error.start})")


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
        yield Sample(key=key_for(key, 0), kind="video", category=given.category, turns=turns, images=frames, extra={"times": times})
    except (DataError, UnicodeDecodeError, IndexError) as error:
        yield Rejected(key, str(error))
    except NotFound:
        yield Rejected(key, "has neither a .txt nor a .json file beside it")


def webdataset(given: Input, key: str, _begin: int, _end: int) -> Found:
    """WebDataset tars: members of one sample share the name up to its first dot; an image, and its text as .txt, .caption or in .json
    (`caption` or `text`, as img2dataset writes it), or one of our own samples."""
    groups: dict[str, dict[str, tar.Member]] = {}
    for member in tar.read_members(store_of(given.uri).read(key), shard=f"{given.uri}/{key}"):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        group, suffix = groups.setdefault(f"{folder}/{stem}", {}), suffix.lower()  # as webdataset itself takes them
        if suffix in group:
            places = f"at bytes {group[suffix].offset:,} and {member.offset:,}"
            raise tar.ShardError(f"{given.uri}/{key}: key {stem} has two members .{suffix}, {places}")
        group[suffix] = member
    for number, (name, members) in enumerate(groups.items()):
        try:
            yield replace(_from_members(given, {suffix: member.body for suffix, member in members.items()}), key=key_for(key, number))
        except DataError as error:
            yield Rejected(f"{key} key {name.strip('/')}", str(error))


def _from_members(given: Input, members: dict[str, bytes]) -> Sample:
    pictures = [body for suffix, body in members.items() if f".{suffix}".endswith(IMAGE_SUFFIXES)]
    loaded = read_json_object(members["json"]) if "json" in members else {}
    if "turns" in loaded:
        return from_json(members["json"], key="k", images=tuple(pictures))
    text = next((_as_text(members[suffix]) for suffix in ("txt", "caption", "text") if suffix in members), None)
    text = text if text is not None else loaded.get("caption") or loaded.get("text")
    if not isinstance(text, str) or len(pictures) != 1:
        raise SampleError(f"has the parts {', '.join(sorted(members))}; one image and one text are expected")
    return pair_of(given, "k", pictures[0], text.strip())


def _as_text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8 (byte {error.start})") from None
