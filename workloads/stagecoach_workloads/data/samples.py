"""One sample: a JSON document of turns, and its images as encoded files. How it looks in a shard, and what is refused.

    {"kind": "conversation", "category": "count",
     "turns": [{"role": "user", "content": [{"image": 0}, "How many red circles?"]}, {"role": "assistant", "content": ["3"]}],
     "answer": {"type": "exact", "value": "3"}, "boxes": [{"image": 0, "box": [10, 12, 30, 33], "label": "circle"}]}

Pairs, interleaved documents, text and OCR pages are one turn of role `document`. A preference sample ends with one turn `chosen` and
one turn `rejected`. A video is a sample whose images are its frames, in order, with their times in `times` (seconds).
"""

import json
from dataclasses import dataclass, field
from typing import Any, get_args

from stagecoach.contract.plan import SampleKind
from stagecoach.errors import DataError

ROLES = ("document", "system", "user", "assistant", "chosen", "rejected")
KINDS: tuple[str, ...] = get_args(SampleKind)
MAX_JSON_BYTES = 4 * 1024 * 1024  # a caption of 50 MB is an accident or an attack
MAX_DEPTH = 16
MAX_IMAGES = 256

Content = str | dict[str, int]  # a text, or {"image": i}


class SampleError(DataError):
    """One sample is not what it should be. The message names what; callers add the key and the shard."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's part: texts and images in order."""

    role: str
    content: tuple[Content, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a generator or converter hands to the writer and a reader gets back. `images` are encoded files (JPEG, PNG or WEBP)."""

    key: str
    kind: str
    category: str
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)  # answer, boxes, times, task ... : never needed for training

    @property
    def text(self) -> str:
        """All text, for counting and for sheets."""
        return "".join(part for turn in self.turns for part in turn.content if isinstance(part, str))


def document(*content: Content) -> tuple[Turn, ...]:
    """The turns of a sample that is no conversation."""
    return (Turn("document", tuple(content)),)


def image(index: int) -> Content:
    return {"image": index}


def image_order(turns: tuple[Turn, ...]) -> list[int]:
    """Image numbers in the order in which they are shown; an image may be shown twice."""
    return [part["image"] for turn in turns for part in turn.content if not isinstance(part, str)]


def to_json(sample: Sample) -> bytes:
    """The sample's `.json` member."""
    turns = [{"role": turn.role, "content": list(turn.content)} for turn in sample.turns]
    body = {"kind": sample.kind, "category": sample.category, "turns": turns, **sample.extra}
    return json.dumps(body, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def from_json(body: bytes, *, key: str, images: tuple[bytes, ...]) -> Sample:
    """Reads a `.json` member. Raises SampleError for anything that is not a sample: size, encoding, depth, kind, roles, image numbers."""
    loaded = read_json_object(body)
    kind, category = loaded.pop("kind", None), loaded.pop("category", None)
    if kind not in KINDS or not isinstance(category, str):
        raise SampleError(f"`kind` is {str(kind)[:40]!r} and `category` {str(category)[:40]!r}; kinds are {', '.join(KINDS)}")
    turns = tuple(_turn(item) for item in _list(loaded.pop("turns", None), "turns"))
    sample = Sample(key=key, kind=kind, category=category, turns=turns, images=images, extra=loaded)
    check_sample(sample)
    return sample


def read_json_object(body: bytes) -> dict[str, Any]:
    """A JSON object within our limits. Raises SampleError that says which limit."""
    if len(body) > MAX_JSON_BYTES:
        raise SampleError(f"its JSON has {len(body):,} bytes; at most {MAX_JSON_BYTES:,} are read")
    try:
        loaded = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SampleError(f"its JSON is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise SampleError(f"its JSON is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise SampleError(f"its JSON cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise SampleError(f"its JSON is a {type(loaded).__name__}, not an object")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(loaded) > MAX_DEPTH:  # never deeper than it has brackets
        raise SampleError(f"its JSON is nested deeper than {MAX_DEPTH} levels")
    return loaded


def check_sample(sample: Sample) -> None:
    """Raises SampleError unless turns, roles and image numbers fit together and there is something to learn from."""
    text = sample.text.strip()
    if not sample.turns or not (text or sample.images):
        raise SampleError(f"has neither text nor images (parts: {[turn.role for turn in sample.turns]})")
    if len(sample.images) > MAX_IMAGES:
        raise SampleError(f"has {len(sample.images)} images; at most {MAX_IMAGES} are read")
    shown = image_order(sample.turns)
    wrong = [number for number in shown if not 0 <= number < len(sample.images)]
    if wrong:
        raise SampleError(f"shows image {wrong[0]} and has {len(sample.images)}: {len(shown)} placeholders, {len(sample.images)} images")
    if len(set(shown)) != len(sample.images) or len(shown) != len(sample.images):
        raise SampleError(f"has {len(sample.images)} images and {len(shown)} placeholders; every image is shown exactly once")
    if not text:
        raise SampleError("has images and no text")
    if sample.kind == "preference" and [turn.role for turn in sample.turns[-2:]] != ["chosen", "rejected"]:
        raise SampleError("is a preference pair that does not end with the turns `chosen`, `rejected`")


def _turn(item: Any) -> Turn:
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise SampleError(
            f"a turn has role {str(item.get('role') if isinstance(item, dict) else item)[:40]!r}; roles are {', '.join(ROLES)}"
        )
    content: list[Content] = []
    for part in _list(item.get("content"), "content"):
        if isinstance(part, str):
            content.append(part)
        elif isinstance(part, dict) and set(part) == {"image"} and isinstance(part["image"], int) and not isinstance(part["image"], bool):
            content.append({"image": part["image"]})
        else:
            raise SampleError(f"a turn's content holds {str(part)[:60]}; it is a list of texts and {{'image': number}}")
    return Turn(item["role"], tuple(content))


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise SampleError(f"`{name}` is a {type(value).__name__}, not a list")
    return value


def _depth(value: Any) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        here, depth = todo.pop()
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            break
        if isinstance(here, dict | list):
            todo.extend((inner, depth + 1) for inner in (here.values() if isinstance(here, dict) else here))
    return deepest
