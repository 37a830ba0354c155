"""What a benchmark's shots are drawn from."""

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

    def draw(self, seed: int, question: Question, category: str, number: int) -> list[Question]:
        """Shots of this category, of any where it has none; never the question itself, whose answer would be told."""
        own = {place for mark in _marks(question) for place in self._by_mark.get(mark, ())}
        same = [place for place in self._by_category.get(category, ()) if place not in own]
        same = same or [place for place in range(len(self.questions)) if place not in own]
        return [self.questions[same[place]] for place in draw(seed, question, len(same), number)]

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


def _marks(question: Question) -> tuple[Hashable, Hashable]:
    """What the same question shares with this one: its id, or what is asked and all right answers."""
    return question.id, (question.text, repr(question.gold))
