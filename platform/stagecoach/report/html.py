"""HTML and SVG as values. A `str` is text and is always escaped; only what `el` built is markup, so nothing from a bucket becomes any."""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")
_ADDRESSES = ("href", "src", "action", "formaction", "srcdoc")  # attributes that a browser follows or runs
_VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)  # controls, overrides of writing direction


@dataclass(frozen=True, slots=True)
class Markup:
    """HTML that is safe to send as it is."""

    text: str


Content = Markup | str | int | float | None | Iterable["Content"]
Value = str | int | float | bool | None


def el(tag: str, attributes: Mapping[str, Value] | None = None, *children: Content) -> Markup:
    """One element. An attribute that is None or False is left out, True stands alone. Raises ValueError for an address that is neither in
    the page, nor an image in it."""
    shown = "".join(_attribute(name, value) for name, value in (attributes or {}).items())
    if tag in _VOID:
        return Markup(f"<{tag}{shown}>")
    return Markup(f"<{tag}{shown}>{join(children).text}</{tag}>")


def join(children: Content) -> Markup:
    """What stands one after the other; strings and numbers as text."""
    if isinstance(children, Markup):
        return children
    if children is None:
        return Markup("")
    if isinstance(children, str | int | float):
        return Markup(escape(str(children)))
    return Markup("".join(join(child).text for child in children))


def escape(text: str) -> str:
    """Text for element content and for quoted attributes. What a browser would not show becomes its code."""
    return html.escape(_UNSEEN.sub(lambda found: f"\\x{ord(found[0]):02x}", text), quote=True)


def style_element(css: str) -> Markup:
    """Our own style sheet, which is no text to escape."""
    if "</" in css:
        raise ValueError("a style sheet cannot hold `</`: it would end there")
    return Markup(f"<style>{css}</style>")


def _attribute(name: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    if _NAME.fullmatch(name) is None or name.lower().startswith("on"):
        raise ValueError(f"attribute {name!r}: only plain names, and no event handlers")
    if value is True:
        return f" {name}"
    if name.lower() in _ADDRESSES and not str(value).startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,", "data:,")):
        raise ValueError(f"attribute {name}={str(value)[:40]!r}: the report holds all it shows")
    return f' {name}="{escape(str(value))}"'
