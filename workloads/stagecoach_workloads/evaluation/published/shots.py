"""What a benchmark's shots are drawn from."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import draw


@dataclass(frozen=True)
class ShotPool:
    """Questions with their answers. A benchmark's files may hold a question several times, in its training split too."""

    questions: Sequence[Question]

    def draw(self, seed: int, question: Question, number: int) -> list[Question]:
        """Shots of its category, of any where that has none; never the question itself, whose answer would be told."""
        own = sorted({place for mark in _marks(question) for place in self._by_mark.get(mark, ())})
        for pool in (self._by_category.get(question.category, ()), range(len(self.questions))):
            left_out = _places_in(pool, own)
            if len(left_out) < len(pool):
                drawn = draw(seed, question, len(pool) - len(left_out), number)
                return [self.questions[pool[_stepping_over(left_out, place)]] for place in drawn]
        return []

    @cached_property
    def _by_category(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(self.questions):
            found[question.category].append(place)
        return dict(found)

    @cached_property
    def _by_mark(self) -> dict[Hashable, list[int]]:
        found: dict[Hashable, list[int]] = defaultdict(list)
        for place, question in enumerate(self.questions):
            for mark in _marks(question):
                found[mark].append(place)
        return dict(found)


def _places_in(pool: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where those of `wanted` stand that are in `pool`. Both are ascending."""
    places = [(bisect_left(pool, each), each) for each in wanted]
    return [place for place, each in places if place < len(pool) and pool[place] == each]


def _stepping_over(left_out: Sequence[int], place: int) -> int:
    """The `place`-th of all places that are not `left_out` (ascending): no list of a large pool is made for each question."""
    for each in left_out:
        if each > place:
            break
        place += 1
    return place


def _marks(question: Question) -> tuple[Hashable, Hashable]:
    """What the same question shares with this one: its id, or what is asked and all right answers."""
    return question.id, (question.text, repr(question.gold))
