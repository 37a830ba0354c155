"""Words of a caption as pycocoevalcap sees them: Stanford's Penn Treebank tokenizer (CoreNLP 3.4.1, lower case), punctuation dropped.

Theirs is a Java program of eight thousand rules; these are the ones that captions meet, compared with it word by word in the tests.
"""

import re

_DROPPED = frozenset({"''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'})
# The published list names brackets in capitals, which lower-casing has changed by then: they stay as words.
_KEPT = frozenset({"-lrb-", "-rrb-", "-lcb-", "-rcb-"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_TOGETHER = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"), "lemme": ("lem", "me"),
             "gimme": ("gim", "me"), "dunno": ("du", "n", "no"), "y'all": ("y'", "all")}  # fmt: skip
_ABBREVIATION = (
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|inc|co|corp|ltd|ave|blvd|rd|no|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|ft"
    r"|a\.m|p\.m|i\.e|e\.g)\."
)
_TOKEN = re.compile(
    r"(?P<url>https?://\S*[^\s.,;!?'\")])"
    r"|(?P<short>'n'(?!\w)|(?<!\w)'\d\ds?(?!\w))"
    r"|(?P<clitic>'(?:s|m|d|re|ve|ll)(?![a-z0-9])|n't(?![a-z]))"
    rf"|(?P<abbreviation>\b{_ABBREVIATION}(?=\s+\S|\S)|\betc\.|\b(?-i:[A-Z])\.(?=\s+\S))"
    r"|(?P<initials>(?:[a-z]\.){2,})"
    r"|(?P<number>[+-]?(?<![\w])\d+(?:[.,:/]\d+)+(?:st|nd|rd|th|s)?(?![a-z]))"
    r"|(?P<word>[^\W_]+(?:(?:[@'_./-](?=[^\W_])|&(?=[^\W_](?![^\W_])))[^\W_]+)*)"
    r"|(?P<marks>[!?]{2,})"
    r"|(?P<dots>\.\.\.|\.{2,})"
    r"|(?P<dashes>-{2,}|[–—])"
    r"|(?P<other>[^\s])",
    re.IGNORECASE,
)
_CLITICS = re.compile(r"^(?P<stem>.+?)(?P<end>n't|'s|'m|'d|'re|'ve|'ll)$")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    words: list[str] = []
    for match in _TOKEN.finditer(text.replace("\n", " ").replace("’", "'")):
        words += _split(match.lastgroup or "", match[0].lower())
    return [word for word in words if word in _KEPT or word not in _DROPPED]


def _split(kind: str, token: str) -> list[str]:
    if kind == "word":
        return _parts(token)
    return [_BRACKETS.get(token, token)]


def _parts(word: str) -> list[str]:
    """A word without the endings that stand for words of their own."""
    ends: list[str] = []
    while word not in _TOGETHER and (match := _CLITICS.match(word)):
        word, ends = match["stem"], [match["end"], *ends]
    return [*_TOGETHER.get(word, (word,)), *ends]
