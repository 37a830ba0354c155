"""Frozen dataclasses to JSON and back, strictly. One way to read and write every object of the run contract.

A stored object is JSON with sorted keys, UTF-8, and `"format": "<name>/<version>"` (interfaces.md).
"""

import difflib
import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from stagecoach.contract.names import whole_number
from stagecoach.errors import ConfigError, ContractError, NewerFormat, StagecoachError

SHOWN_CHARS = 200  # of a wrong value

R = TypeVar("R")


class Record:
    """A value object: a frozen, keyword-only dataclass of plain values. Unknown keys, NaN and inf are refused when it is read."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


class Stored(Record):
    """A record that is an object in the bucket. `FORMAT` names it, `VERSION` is the newest this program reads and writes."""

    __slots__ = ()
    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1


S = TypeVar("S", bound=Stored)


@cache
def adapter(kind: Hashable) -> TypeAdapter[Any]:
    """The validator of a type; built once."""
    return TypeAdapter(cast(Any, kind))


def to_plain(value: Any) -> Any:
    """A record as dicts, lists and plain values, ready for JSON."""
    return adapter(cast(Hashable, type(value))).dump_python(value, mode="json")


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: equal values give equal bytes, so this is what is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encode(record: Stored, *, indent: int | None = 1) -> bytes:
    """The object's bytes. What UTF-8 does not have (a file's name that was no text, inside a message) becomes a question mark.

    `indent`: None for one that no person reads: a third smaller, and written several times as fast.
    """
    body = {"format": f"{record.FORMAT}/{record.VERSION}", **to_plain(record)}
    spaces = (",", ":") if indent is None else None
    text = json.dumps(body, sort_keys=True, indent=indent, separators=spaces, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def decode(kind: type[S], body: bytes, *, uri: str) -> S:
    """Reads one object. Raises ContractError that names `uri` when the format is another's or newer (NewerFormat), or a field is wrong."""
    try:
        loaded = json.loads(body)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        raise ContractError(f"{uri} is not JSON ({error}); it was not written by Stagecoach, or was edited") from error
    stated = loaded.pop("format", None) if isinstance(loaded, dict) else None
    name, _, written = str(stated).rpartition("/")
    version = whole_number(written)
    if name != kind.FORMAT or version is None:
        raise ContractError(f"{uri} has format {shortened(repr(stated))}; expected {kind.FORMAT}/{kind.VERSION}")
    if version > kind.VERSION:
        raise NewerFormat(
            f"{uri} has format {stated}, newer than {kind.FORMAT}/{kind.VERSION}, the newest this Stagecoach reads; "
            "use the version that wrote it, or a later one"
        )
    return validate(kind, loaded, where=uri, error=ContractError)


def validate(kind: type[R], plain: Any, *, where: str, error: type[StagecoachError] = ConfigError, prefix: str = "") -> R:
    """Plain values to a record, strictly typed. Raises `error` with every wrong path (under `prefix`), its value and the rule."""
    try:
        checked: R = adapter(cast(Hashable, kind)).validate_json(json.dumps(plain), strict=True)
        return checked
    except ValidationError as invalid:
        items = invalid.errors(include_url=False)
        roots = [item for item in items if not any(_is_inside(other["loc"], item["loc"]) for other in items)]
        problems = [describe_problem(kind, item, prefix, plain) for item in roots]
        raise error(f"{where}: " + "; ".join(problems)) from None


def _is_inside(inner: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    """A list whose entry is wrong is reported too, as too short; the entry is the cause."""
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


def describe_problem(kind: Any, item: Any, prefix: str = "", plain: Any = None) -> str:
    """One validation error as a sentence with the dotted path, the value and the rule."""
    path, siblings = _resolve(kind, item["loc"])
    dotted = ".".join(([prefix] if prefix else []) + _labelled(path, plain))
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key `{dotted}`{did_you_mean(path[-1], siblings, dotted.rpartition('.')[0])}"
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"`{dotted}` is missing"
    return f"`{dotted}` = {shortened(json.dumps(item['input'], default=str))}: {rule_of(item)}"


def shortened(text: str) -> str:
    """For a message: its beginning, where it is longer than a person reads."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text)} characters)"


def label_of(item: Any, index: int) -> str:
    """How a path names an entry of a list: by its name or dataset where it has one, else by its place."""
    return str(item.get("name", item.get("dataset", index))) if isinstance(item, dict) else str(index)


def _labelled(path: Sequence[str], plain: Any) -> list[str]:
    """The path with entries of lists named."""
    named = []
    for part in path:
        index = whole_number(part)
        if isinstance(plain, list) and index is not None and index < len(plain):
            named.append(label_of(plain[index], index))
            plain = plain[index]
        else:
            named.append(part)
            plain = plain.get(part) if isinstance(plain, dict) else None
    return named


def rule_of(item: Any) -> str:
    """Pydantic's sentence, in a config author's words."""
    if item["type"].startswith("dataclass"):
        return "it has fields of its own: set one of them, or give a JSON object"
    message: str = re.sub(r"^\w+ should ", "must ", item["msg"])
    if item["type"] == "int_type" and isinstance(item["input"], float) and item["input"].is_integer():
        message += f"; write {int(item['input'])}"
    return f"{message[:1].lower()}{message[1:]}"


def did_you_mean(word: str, known: Sequence[str], above: str = "") -> str:
    """`; did you mean ...?` with the nearest known name (as a path under `above`), or the list of names where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean `{above + '.' if above else ''}{near[0]}`?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def walk_leaves(value: Any, visit: Callable[[str, Any], None], path: str = "") -> None:
    """Calls visit(dotted path, value) for every leaf of a plain value; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            walk_leaves(inner, visit, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            walk_leaves(inner, visit, f"{path}.{label_of(inner, index)}")
    else:
        visit(path, value)


def leaves(value: Any) -> dict[str, Any]:
    """Every leaf of a plain value by its dotted path."""
    found: dict[str, Any] = {}
    walk_leaves(value, found.__setitem__)
    return found


def _resolve(kind: Any, loc: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """The path a person would write (pydantic adds the tag of the chosen union member) and the names known beside its last part."""
    path: list[str] = []
    here, siblings = union_members(kind), field_names(kind)
    for place, part in enumerate(loc):
        if len(here) > 1 and all(is_dataclass(member) for member in here) and place < len(loc) - 1:
            here = [member for member in here if _tag(member) == part]
            siblings = sorted({name for member in here for name in field_names(member)})
            continue
        siblings = sorted({name for member in here for name in field_names(member)})
        path.append(str(part))
        here = [inner for member in here for inner in union_members(_step(member, part))]
    return path, siblings


def field_names(kind: Any) -> list[str]:
    """The field names of a dataclass, in order; nothing for any other type."""
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []


def _tag(kind: Any) -> Any:
    """The value of `kind` that selects this member of a union."""
    return next((f.default for f in fields(kind) if f.name == "kind"), None)


def _step(kind: Any, part: str | int) -> Any:
    if isinstance(part, int):
        return next((arg for arg in get_args(kind) if arg is not Ellipsis), None)
    return _hints(cast(Hashable, kind)).get(part) if is_dataclass(kind) else None


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def union_members(kind: Any) -> list[Any]:
    """The members of a union without None, or the type alone."""
    if get_origin(kind) is Annotated:
        return union_members(get_args(kind)[0])
    if get_origin(kind) in (UnionType, Union):
        return [inner for arg in get_args(kind) if arg is not type(None) for inner in union_members(arg)]
    return [kind]
