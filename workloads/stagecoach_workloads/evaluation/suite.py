"""A suite: questions in a fixed order, shots for them, and what each category scores without skill."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from stagecoach.contract.dataset import Baseline
from stagecoach_workloads.data.made.level import stream
from stagecoach_workloads.evaluation.question import Question

Ask = Callable[[Question, int], tuple[Question, Sequence[Question]]]
T = TypeVar("T")


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
    scored beside a category's own. `groups`: categories whose means are told together. `splits_apart`: they are of several evaluation
    splits, over which nobody takes a mean."""

    name: str
    questions: Sequence[Question]
    ask: Ask
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    extra_metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits_apart: bool = False
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


def shuffled_images(questions: Sequence[Question], *, seed: int, beat: Callable[[], None] = lambda: None) -> list[Question]:
    """Every question with the images of another one of its category that shows as many: what is left of a score is had blindly.

    They go round in a random ring, so far that no question gets its own back, nor those of another question about the same images. Where
    more than half of a ring are about the same, the questions that would keep them get any others with as many images, else any others of
    the suite, of their own category if it has some, spread to as many. Only where the whole suite has no others are they kept.
    Whole sets are compared: of (A, B) and (A, C) each may get the other. `beat` is called before each look at a question's images.
    """
    identities = [_identity(question, beat) for question in questions]
    pictured = [place for place, question in enumerate(questions) if question.images]
    rings: dict[tuple[str, int], list[int]] = {}
    as_many: dict[int, list[int]] = {}
    of_category: dict[str, list[int]] = {}
    for place in pictured:
        question = questions[place]
        rings.setdefault((question.category, len(question.images)), []).append(place)
        as_many.setdefault(len(question.images), []).append(place)
        of_category.setdefault(question.category, []).append(place)
    taken: dict[int, int] = {}
    for (category, images), places in rings.items():
        order = list(places)
        stream(seed, "shuffle", category, images).shuffle(order)
        taken |= _ring(order, (order, as_many[images], of_category[category], pictured), identities)
    shown = {place: spread(questions[other].images, len(questions[place].images)) for place, other in taken.items()}
    return [replace(question, images=shown.get(place, ())) for place, question in enumerate(questions)]


def _identity(question: Question, beat: Callable[[], None]) -> tuple[Hashable, ...]:
    """Equal for questions about the same images."""
    if question.images:
        beat()  # reads them
    return tuple(picture.identity for picture in question.images)


def _ring(order: Sequence[int], pools: Sequence[Sequence[int]], identities: Sequence[tuple[Hashable, ...]]) -> dict[int, int]:
    """Whose images each of `order` gets. Questions about the same images stand side by side, and all move on by as many as the most are;
    those that would keep their own get others of the first pool that has any."""
    groups: dict[Hashable, list[int]] = {}
    for place in order:
        groups.setdefault(identities[place], []).append(place)
    most = max(groups.values(), key=len)
    side_by_side = [place for group in groups.values() for place in group]
    ahead = [*side_by_side[len(most) :], *side_by_side[: len(most)]]
    taken = dict(zip(side_by_side, ahead, strict=True))
    own = identities[most[0]]
    kept = [place for place in most if identities[taken[place]] == own]
    others = _others(own, pools, identities) if kept else []
    return taken | {place: others[place % len(others)] for place in kept if others}


def _others(own: Sequence[Hashable], pools: Sequence[Sequence[int]], identities: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Of the first pool that has any: those whose images, spread to as many, are not `own`."""
    for pool in pools:
        found = [place for place in pool if spread(identities[place], len(own)) != own]
        if found:
            return found
    return []


def spread(items: Sequence[T], number: int) -> tuple[T, ...]:
    """`number` of them, evenly apart; some again where there are fewer."""
    return tuple(items[place * len(items) // number] for place in range(number))


def draw(seed: int, question: Question, pool: int, number: int) -> list[int]:
    """Which `number` of `pool` become a question's shots, the last one nearest to it; fewer shots are the last of more."""
    order = stream(seed, "shots", question.id).sample(range(pool), min(pool, max(number, 16)))
    return list(reversed(order[:number]))
