"""A suite: questions in a fixed order, shots for them, and what each category scores without skill."""

from collections.abc import Callable, Hashable, Mapping, Sequence
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

    They go round in a random ring, so far that no question gets its own back, nor that of another question about the same image. Where
    more than half of a category are about one image, the questions that would keep it get any other one, of another category if need be.
    """
    identities = [tuple(picture.identity for picture in question.images) for question in questions]
    rings: dict[tuple[str, int], list[int]] = {}
    alike: dict[int, list[int]] = {}  # by the number of images
    for place, question in enumerate(questions):
        if question.images:
            rings.setdefault((question.category, len(question.images)), []).append(place)
            alike.setdefault(len(question.images), []).append(place)
    taken = {place: place for place in range(len(questions))}
    for (category, images), places in rings.items():
        order = list(places)
        stream(seed, "shuffle", category, images).shuffle(order)
        taken |= _ring(order, alike[images], identities)
    return [replace(question, images=questions[taken[place]].images) for place, question in enumerate(questions)]


def _ring(order: Sequence[int], alike: Sequence[int], identities: Sequence[Hashable]) -> dict[int, int]:
    """Whose images each of `order` gets. Questions about one image stand side by side, and all move on by as many as the most are."""
    groups: dict[Hashable, list[int]] = {}
    for place in order:
        groups.setdefault(identities[place], []).append(place)
    most = max(groups.values(), key=len)
    side_by_side = [place for group in groups.values() for place in group]
    ahead = [*side_by_side[len(most) :], *side_by_side[: len(most)]]
    taken = dict(zip(side_by_side, ahead, strict=True))
    own = identities[most[0]]
    others = [place for place in order if identities[place] != own] or [place for place in alike if identities[place] != own]
    kept = [place for place in most if identities[taken[place]] == own] if others else []
    return taken | {place: others[place % len(others)] for place in kept}


def draw(seed: int, question: Question, pool: int, number: int) -> list[int]:
    """Which `number` of `pool` become a question's shots, the last one nearest to it; fewer shots are the last of more."""
    order = stream(seed, "shots", question.id).sample(range(pool), min(pool, max(number, 16)))
    return list(reversed(order[:number]))
