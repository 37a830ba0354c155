"""CIDEr-D of a set of captions (Vedantam et al. 2015, arXiv:1411.5726), with the constants of the published scorer (pycocoevalcap).

What people call "CIDEr" in results tables is CIDEr-D of that scorer: n-grams of 1 to 4 words, clipped counts, a Gaussian on the
difference in length, times 10. Its length counts *bigrams*, which is kept: sigma 6 was chosen with it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from stagecoach_workloads.evaluation.metrics.ptb import tokenize

LONGEST = 4
SIGMA = 6.0
SCALE = 10.0

Grams = Counter[tuple[str, ...]]


def cider(answers: Sequence[str], references: Sequence[Sequence[str]], *, beat: Callable[[], None] = lambda: None) -> list[float]:
    """A score for each answer; their mean is the set's CIDEr. How rare n-grams are is counted over the references of all of them. `beat` is
    called for every answer: forty thousand take a minute.

    One image alone scores 0: every n-gram is then in all documents.
    """
    said = [grams(answer) for answer in answers]
    right = [_all_grams(each, beat) for each in references]
    documents = Counter(gram for each in right for gram in set().union(*each))
    weights = _Weights(documents, len(right))
    return [_score(own, each, weights, beat) for own, each in zip(said, right, strict=True)]


def _all_grams(texts: Sequence[str], beat: Callable[[], None]) -> list[Grams]:
    beat()
    return [grams(text) for text in texts]


def grams(text: str) -> Grams:
    """How often each n-gram of 1 to 4 words is in the caption."""
    words = tokenize(text)
    return Counter(tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1))


class _Weights:
    """tf-idf vectors."""

    def __init__(self, documents: Mapping[tuple[str, ...], int], images: int) -> None:
        self._documents, self._log_images = documents, math.log(images)

    def vector(self, counts: Grams) -> list[dict[tuple[str, ...], float]]:
        """By number of words, from 1."""
        found: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for gram, count in counts.items():
            rarity = self._log_images - math.log(max(1.0, self._documents.get(gram, 0)))
            found[len(gram) - 1][gram] = count * rarity
        return found


def _score(own: Grams, references: Sequence[Grams], weights: _Weights, beat: Callable[[], None]) -> float:
    beat()
    vector = weights.vector(own)
    total = 0.0
    for reference in references:
        away = _bigrams(own) - _bigrams(reference)
        total += sum(map(_cosine, vector, weights.vector(reference))) * math.exp(-(away**2) / (2 * SIGMA**2))
    return SCALE * total / LONGEST / len(references)


def _cosine(own: Mapping[tuple[str, ...], float], reference: Mapping[tuple[str, ...], float]) -> float:
    """Similarity with the answer's weights clipped to the reference's: saying a rare word twice gains nothing."""
    norms = math.sqrt(sum(value**2 for value in own.values())) * math.sqrt(sum(value**2 for value in reference.values()))
    shared = sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in own.items())
    return shared / norms if norms else shared


def _bigrams(counts: Grams) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)
