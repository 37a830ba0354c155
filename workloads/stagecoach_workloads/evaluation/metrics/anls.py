"""Average normalised Levenshtein similarity: DocVQA's metric (Biten et al. 2019, arXiv:1905.13648, equation 1)."""

from collections.abc import Sequence

THRESHOLD = 0.5  # a similarity below it counts nothing


def anls(answer: str, answers: Sequence[str]) -> float:
    """The best similarity with any right answer, without regard to case and runs of white space; 0 below 0.5.

    As the evaluation server's script does it: distances are those of the texts made plain, lengths those of the texts as they came.
    """
    best = max((_similarity(answer, right) for right in answers), default=0.0)
    return best if best >= THRESHOLD else 0.0


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1.0 - distance(_plain(one), _plain(other)) / longest if longest else 1.0


def distance(one: str, other: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions each cost 1."""
    before = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        here = [row]
        for column, right in enumerate(other, 1):
            here.append(min(before[column] + 1, here[-1] + 1, before[column - 1] + (left != right)))
        before = here
    return before[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
