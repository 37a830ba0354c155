"""Tables that become a card a row on a phone, pills and lists of facts."""

from collections.abc import Sequence
from dataclasses import dataclass

from stagecoach.report.html import Content, Markup, el

NONE = "–"  # nothing to tell; left out on a phone


@dataclass(frozen=True, slots=True)
class Column:
    """A heading. Numbers stand to the right; `is_long` texts get a line of their own on a phone."""

    title: str
    is_number: bool = False
    is_long: bool = False


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Content]]) -> Markup:
    """The first column names the row."""
    head = el("tr", None, [el("th", {"scope": "col", "class": "num" if column.is_number else None}, column.title) for column in columns])
    body = [el("tr", None, [_cell(columns[place], cell, place) for place, cell in enumerate(row)]) for row in rows]
    return el(
        "div", {"class": "scroll"},
        el("table", {"class": "cards"}, el("caption", None, caption), el("thead", None, head), el("tbody", None, body)),
    )  # fmt: skip


def _cell(column: Column, content: Content, place: int) -> Markup:
    if place == 0:
        return el("th", {"scope": "row"}, content)
    if content is None or content == "":
        return el("td", {"data-label": column.title})
    kinds = " ".join(name for name, on in (("num", column.is_number), ("long", column.is_long), ("none", content == NONE)) if on)
    return el("td", {"class": kinds or None, "data-label": column.title}, el("span", None, content))


def pill(text: str, kind: str = "") -> Markup:
    """A state in one word or two. kind: good, bad, warn or nothing."""
    return el("span", {"class": f"pill {kind}".strip()}, text)


def facts(pairs: Sequence[tuple[str, Content]]) -> Markup:
    """Names and values, one below the other."""
    return el("dl", {"class": "facts"}, [(el("dt", None, name), el("dd", None, value)) for name, value in pairs])


def code(text: str) -> Markup:
    return el("code", None, text)


def digest(text: str | None) -> Content:
    """The beginning of a digest: enough to compare by eye."""
    return code(text[:12]) if text else NONE
