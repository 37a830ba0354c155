"""A suite: questions in a fixed order, shots for them, and what each category scores without skill."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stagecoach.contract.dataset import Baseline
from stagecoach_workloads.data.made.level import stream
from stagecoach_workloads.evaluation.question import Question

Ask = Callable[[Question, int], tuple[Question, Sequence[Question]]]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question asked with so many shots."""

    question: Question
    shots: int

    @property
    def id(self) -> str:
        return f"{self.question.id}@{self.shots}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """`ask` draws the shots of a question (and may change the question: in-context documents are put together anew). `extra_metrics` are
    scored beside a category's own. `groups`: categories whose means are told together."""

    name: str
    questions: Sequence[Question]
    ask: Ask
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    extra_metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    always: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shots that a category is asked with whatever is asked for

    def items(self, shots: Sequence[int]) -> list[Item]:
        """Everything that is to be answered, in the order that segments are cut from."""
        wanted = {question.category: {*shots, *self.always.get(question.category, ())} for question in self.questions}
        order = sorted(set().union(*wanted.values()))
        return [Item(question=each, shots=number) for number in order for each in self.questions if number in wanted[each.category]]


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` of each category."""
    if limit is None:
        return list(questions)
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.category] = seen.get(question.category, 0) + 1
        if seen[question.category] <= limit:
            kept.append(question)
    return kept


def shuffled_images(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """Every question with the images of another one of its category that shows as many: what is left of a score is had blindly.

    They go round in a random ring, so no question keeps its own; a question that is alone of its kind loses its images' meaning by
    getting those of any other category.
    """
    rings: dict[tuple[str, int], list[int]] = {}
    for place, question in enumerate(questions):
        if question.images:
            rings.setdefault((question.category, len(question.images)), []).append(place)
    alone = [places[0] for places in rings.values() if len(places) == 1]
    taken = {place: place for place in range(len(questions))}
    for (category, images), places in rings.items():
        if len(places) == 1:
            others = [p for p in alone if p != places[0] and len(questions[p].images) == images]
            others = others or [p for (_, n), ring in rings.items() if n == images for p in ring if p != places[0]]
            taken[places[0]] = others[0] if others else places[0]
            continue
        order = list(places)
        stream(seed, "shuffle", category, images).shuffle(order)
        taken |= dict(zip(order, [*order[1:], order[0]], strict=True))
    return [replace(question, images=questions[taken[place]].images) for place, question in enumerate(questions)]


def draw(seed: int, question: Question, pool: int, number: int) -> list[int]:
    """Which `number` of `pool` become a question's shots, the last one nearest to it; fewer shots are the last of more."""
    order = stream(seed, "shots", question.id).sample(range(pool), min(pool, max(number, 16)))
    return list(reversed(order[:number]))
