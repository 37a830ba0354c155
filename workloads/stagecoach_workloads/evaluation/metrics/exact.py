"""Comparing texts and choices."""

import re
from collections.abc import Sequence

_LETTER = re.compile(r"(?:\((?=[A-Z]\)))?([A-Z])(?:[).:]|\s*\n|$)")  # no word that begins with one, nor the article in "A red bus"

_SMALL = re.compile(r"\(?([a-z])\)?[.:]?")  # alone: at the start of a text it may be the article


def exact(answer: str, value: str) -> float:
    """1 when the texts are equal but for white space and a last full stop."""
    return float(_plain(answer) == _plain(value))


def exact_any(answer: str, answers: Sequence[str]) -> float:
    """1 when it is one of the right answers: the same number to two decimals, or the same text without regard to case.

    MMMU's official script also takes an answer that merely contains the right one; this asks for the answer itself.
    """
    said = _comparable(answer)
    return float(any(said == _comparable(right) for right in answers))


def choice(answer: str, options: Sequence[str], right: int) -> float:
    """1 when the answer names option number `right`: by its letter, or by exactly its text without regard to case.

    A letter counts alone, also on a line of its own, and before a mark, whatever follows that: `B`, `(B)`, `B)`, `B.`, `B:`, `B. text`.
    A small one counts alone (`b`, `(b)`, `b.`), where it is no option's text.
    An answer that is exactly one option's text is that option, whatever letter it begins with. A letter with nothing after it is
    always the letter, which is what is asked for, even where another option's text is that letter.

    MMMU's official parser draws at random when it finds nothing; here nothing is wrong, so that a score does not hang on luck.
    """
    said = answer.strip()
    texts = [_plain(option).lower() for option in options]
    is_text = texts.count(_plain(said).lower()) == 1
    letter = _LETTER.match(said)
    if letter and ord(letter[1]) - ord("A") < len(options) and (letter.end() == len(said) or not is_text):
        return float(ord(letter[1]) - ord("A") == right)
    small = _SMALL.fullmatch(said)
    if small and not is_text:
        return float(ord(small[1]) - ord("a") == right)
    return float(is_text and _plain(said).lower() == texts[right])


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip()


def _comparable(text: str) -> str | float:
    plain = _plain(text).lower()
    try:
        return round(float(plain.replace(",", "")), 2)
    except ValueError:
        return plain
