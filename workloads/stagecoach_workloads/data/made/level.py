"""How hard the made data is, and which parameters each split may use.

Splits share questions and answers but nothing that is drawn: shades of colours, words, operands and layouts are taken from disjoint
sets, so that a model that repeats what it saw is not rewarded. Answers are drawn independently of all of these.
With a closed vocabulary words and operands are answers too: splits share them, as they share the names of colours, and differ in what is
put together from them (pairs, pages, programs, ways to write a sum) and in all shades.
"""

import hashlib
import itertools
import random
import zlib
from dataclasses import dataclass, replace

SPLITS = ("train", "validation", "test")
_CLASSES = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # of ten


@dataclass(frozen=True, kw_only=True)
class Level:
    """One difficulty. Sizes in pixels."""

    size: int  # the short side of most images
    page: int  # the width of pages and screens
    grid: int  # shapes stand on a grid of so many cells a side
    colours: int
    shapes: int
    most: int  # the largest count
    words: int  # how many words a split has
    numbers: int  # operands are below
    frames: int
    open_vocabulary: bool = True  # whether each split has words and pairs of operands of its own
    syllables: int = 2  # of a word
    lines: int = 3  # of a page at most, each of so many words
    line_words: int = 2
    fields: int = 3  # of a form
    cells: int = 10  # what a table's cells hold is below
    screen_rows: int = 4  # of a screen, a button each
    labels: int = 8  # that buttons may have
    icons: bool = False  # whether a button shows, beside its label, the icon that goes with it (6 labels have one)
    quality: int = 90  # of JPEG


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A named size of corpus: samples of each dataset by split."""

    level: Level
    train: int
    held_out: int  # of validation and of test
    unit: int = 250  # samples a unit of work writes
    tested: int = 0  # where it is more: test samples of each category, so that its score can be told from chance


_EASY = Level(size=48, page=64, grid=2, colours=4, shapes=3, most=4, words=40, numbers=5, frames=8)
_HOUR = replace(  # what reads takes most of an hour, so there is little to read
    _EASY, open_vocabulary=False, words=12, syllables=1, numbers=3, lines=2, line_words=1, fields=2, cells=3, screen_rows=3, labels=6,
    icons=True,
)  # fmt: skip
PROFILES = {
    "tiny": Profile(level=_EASY, train=120, held_out=24, unit=60),
    "demo": Profile(level=_EASY, train=1200, held_out=120, unit=300, tested=210),
    "learn": Profile(level=_HOUR, train=9000, held_out=240, unit=1000, tested=250),
    "bench": Profile(
        level=Level(size=500, page=700, grid=4, colours=8, shapes=7, most=9, words=250, numbers=50, frames=16, quality=85),
        train=1500,
        held_out=50,
        unit=100,
    ),
}


def stream(*parts: object) -> random.Random:
    """A generator that depends on nothing but `parts`."""
    return random.Random(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest())


def in_split(text: str, split: str) -> bool:
    """True when this parameter belongs to the split."""
    return zlib.crc32(text.encode()) % 10 in _CLASSES[split]


def shade_classes(split: str) -> range:
    """Which of the ten shades of a colour the split may use."""
    return _CLASSES[split]


def words(level: Level, split: str) -> list[str]:
    """The split's made words: different syllables each. Disjoint between splits, unless the level's splits share them."""
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    found = map("".join, itertools.permutations(syllables, level.syllables))
    mine = [word for word in found if in_split(word, split if level.open_vocabulary else "train")]
    stream("words").shuffle(mine)
    return sorted(mine[: level.words])


def word_pairs(level: Level, split: str) -> list[tuple[str, str]]:
    """Two different words in order. A pair is of one split, also where the words are shared."""
    if level.open_vocabulary:
        return list(itertools.pairwise(words(level, split)))
    return [(a, b) for a, b in itertools.permutations(words(level, split)[:40], 2) if in_split(f"{a} {b}", split)]
