"""Comparing texts and choices."""

import re
from collections.abc import Sequence

_LETTER = re.compile(r"^\(?([A-Z])(?:[).:]|\b)")


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
    """1 when the answer names option number `right`: by its letter (`B`, `(B)`, `B.`, `B. text`), or by exactly its text.

    MMMU's official parser draws at random when it finds nothing; here nothing is wrong, so that a score does not hang on luck.
    """
    said = answer.strip()
    letter = _LETTER.match(said)
    if letter and ord(letter[1]) - ord("A") < len(options):
        return float(ord(letter[1]) - ord("A") == right)
    texts = [_plain(option).lower() for option in options]
    return float(_plain(said).lower() == texts[right] and texts.count(texts[right]) == 1)


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip()


def _comparable(text: str) -> str | float:
    plain = _plain(text).lower()
    try:
        return round(float(plain.replace(",", "")), 2)
    except ValueError:
        return plain
