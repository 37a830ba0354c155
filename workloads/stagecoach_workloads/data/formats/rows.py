"""Formats whose samples are rows of JSON: LLaVA/ShareGPT conversations, preference pairs, text lines, COCO captions."""

import re
from typing import Any

from stagecoach.errors import DataError
from stagecoach_workloads.data.formats.reading import Found, Input, checked, json_rows, key_for, named_image, pair_of, weigh_rows
from stagecoach_workloads.data.samples import Content, Sample, SampleError, Turn, document, image
from stagecoach_workloads.data.writer import Rejected

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"\s*<image>\s*")


def llava(given: Input, row: dict[str, Any], key: str) -> Sample:
    """LLaVA's and ShareGPT's: `id`, `image` (a path or a list), `conversations` of `from`/`value`; <image> in the text marks the place
    (haotian-liu/LLaVA docs/Finetune_Custom_Data.md)."""
    names = _image_names(row)
    turns: list[Turn] = []
    shown = 0
    for said in _list_of(row, "conversations") or _list_of(row, "messages"):
        if not isinstance(said, dict):
            raise SampleError(f"a turn is a {type(said).__name__}, not an object of `from` and `value`")
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
    images = tuple(named_image(given, name) for name in names)
    return Sample(
        key=key,
        kind="conversation",
        category=given.category,
        turns=tuple(turns),
        images=images,
        extra={"source_id": str(row.get("id", ""))},
    )


def _list_of(row: dict[str, Any], field: str) -> list[Any]:
    """The field's list; empty where it is missing or null. Raises SampleError for anything else."""
    value = row.get(field)
    if value is not None and not isinstance(value, list):
        raise SampleError(f"`{field}` is a {type(value).__name__}, not a list")
    return value or []


def _image_names(row: dict[str, Any]) -> list[Any]:
    """`image` or `images`: one path or a list of them. Raises SampleError for anything else."""
    field = "image" if "image" in row else "images"
    return [row[field]] if isinstance(row.get(field), str) else _list_of(row, field)


def _with_images(text: str, first: int) -> list[Content]:
    """Text with <image> marks as content; images count from `first`."""
    parts = _PLACEHOLDER.split(text)
    content: list[Content] = [parts[0]] if parts[0] else []
    for number, part in enumerate(parts[1:]):
        content.append(image(first + number))
        if part:
            content.append(part)
    return content


def preference(given: Input, row: dict[str, Any], key: str) -> Sample:
    """`prompt`, `chosen`, `rejected`, and `image` or `images` (huggingface/trl docs/source/dataset_formats.md); `question` for `prompt`,
    as RLAIF-V has it (openbmb/RLAIF-V-Dataset on the Hub)."""
    prompt = row.get("prompt", row.get("question"))
    answers = [row.get("chosen"), row.get("rejected")]
    if not isinstance(prompt, str) or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise SampleError("needs the texts `prompt`, `chosen` and `rejected`")
    names = _image_names(row)
    content = _with_images(prompt, 0)
    if not any(not isinstance(part, str) for part in content):
        content = [*(image(number) for number in range(len(names))), *content]
    turns = (Turn("user", tuple(content)), Turn("chosen", (str(answers[0]),)), Turn("rejected", (str(answers[1]),)))
    return Sample(key=key, kind="preference", category=given.category, turns=turns, images=tuple(named_image(given, n) for n in names))


def text_line(given: Input, row: dict[str, Any], key: str) -> Sample:
    """`text`, as C4 and Dolma have it (dolma.py of allenai/dolma on the Hub); `content`, as the Stack has it (bigcode/the-stack)."""
    text = row.get("text", row.get("content"))
    if not isinstance(text, str):
        raise SampleError(f"has no `text` (its fields: {', '.join(sorted(row)[:8])})")
    return Sample(key=key, kind="text", category=given.category, turns=document(text))


def coco(given: Input, key: str, begin: int, end: int) -> Found:
    """COCO captions: `images` of `id`, `file_name`; `annotations` of `image_id`, `caption` (cocodataset.org/#format-data, 5)."""
    names, notes = _coco_parts(given, key)
    for number, note in enumerate(notes[begin:end], begin):
        try:
            if not isinstance(note, dict):
                raise SampleError(f"is a {type(note).__name__}, not an object of `image_id` and `caption`")
            shown, caption = str(note.get("image_id")), note.get("caption")
            if shown not in names or not isinstance(caption, str):
                raise SampleError(f"annotation has image_id {note.get('image_id')!r} and caption {str(caption)[:40]!r}")
            body = named_image(given, names[shown])
            yield checked(pair_of(given, key_for(key, number), body, caption.strip()))
        except DataError as error:
            yield Rejected(f"{key} annotation {number}", str(error))


def _coco_parts(given: Input, key: str) -> tuple[dict[str, Any], list[Any]]:
    """(file name of every image by its id as text, annotations). Images without a name are left out: what names them is rejected."""
    loaded = next(iter(json_rows(given.uri, key)), None)
    parts = [loaded.get(field) if isinstance(loaded, dict) else None for field in ("images", "annotations")]
    for field, part in zip(("images", "annotations"), parts, strict=True):
        if not isinstance(part, list):
            raise DataError(f"{given.uri}/{key}: has no list `{field}`; COCO's captions file (captions_*.json) is expected")
    names = {str(item["id"]): item["file_name"] for item in parts[0] or [] if isinstance(item, dict) and {"id", "file_name"} <= item.keys()}
    return names, parts[1] or []


def weigh_text(given: Input, key: str, size: int) -> list[int]:
    return weigh_rows(given, size, [()] * len(json_rows(given.uri, key)))


def weigh_with_images(given: Input, key: str, size: int) -> list[int]:
    return weigh_rows(given, size, [_names_in(row) for row in json_rows(given.uri, key)])


def _names_in(row: Any) -> list[Any]:
    try:
        return _image_names(row) if isinstance(row, dict) else []
    except SampleError:  # the row will be rejected
        return []


def weigh_coco(given: Input, key: str, size: int) -> list[int]:
    names, notes = _coco_parts(given, key)
    shown = [names.get(str(note.get("image_id"))) if isinstance(note, dict) else None for note in notes]
    return weigh_rows(given, size, [() if name is None else (name,) for name in shown])
