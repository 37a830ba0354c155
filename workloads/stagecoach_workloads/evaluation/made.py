"""The built-in suites: the made corpus' test split by category, shots from its training split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from stagecoach.contract.dataset import Baseline, Corpus, read_corpus
from stagecoach.contract.evaluation import IN_CONTEXT_SHOTS, MADE_SUITES
from stagecoach.errors import ConfigError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.data.dataset import Dataset, open_dataset
from stagecoach_workloads.data.made.level import stream
from stagecoach_workloads.data.samples import Sample, Turn
from stagecoach_workloads.evaluation.question import InMemory, Question
from stagecoach_workloads.evaluation.suite import Suite, draw

_METRICS = {"exact": "exact", "box": "iou_50", "point": "point"}  # as samples and baselines name them
_READ_AT_ONCE = 256
_EXAMPLES = 400  # samples of the training split that are looked at for examples and answers
FEW_SHOT = "few_shot"


@dataclass
class MadeSplit:
    """One dataset's split, read by category."""

    name: str
    uri: str
    fingerprint: str | None = None

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.uri, fingerprint=self.fingerprint)

    @cached_property
    def by_category(self) -> dict[str, list[int]]:
        """Sample numbers, in order, of each category in order of its first sample."""
        names, numbers = self.dataset.index.categories
        order = sorted(set(numbers.tolist()), key=lambda number: int(np.argmax(numbers == number)))
        return {names[number]: np.flatnonzero(numbers == number).tolist() for number in order}

    def read(self, numbers: Sequence[int]) -> list[Sample]:
        found: list[Sample] = []
        for first in range(0, len(numbers), _READ_AT_ONCE):
            found += self.dataset.read_many(numbers[first : first + _READ_AT_ONCE])
        return found


@dataclass
class MadeSuite:
    """Builds one suite. `train` may be empty: then shots come from the other test questions."""

    name: str
    test: Sequence[MadeSplit]
    train: Mapping[str, MadeSplit]
    seed: int
    limit: int | None
    baselines: Mapping[str, Mapping[str, Baseline]] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # categories of a dataset; others are not asked
    _shots: dict[tuple[str, str, int], Question] = field(default_factory=dict)
    _home: dict[str, tuple[str, str]] = field(default_factory=dict)  # question id -> dataset, category
    _own: dict[tuple[str, str], list[Question]] = field(default_factory=dict)
    _rules: dict[str, list[tuple[InMemory, str]]] | None = None  # examples of few-shot documents by rule

    def build(self) -> Suite:
        """Reads the questions. Raises DataError for datasets that are missing or damaged."""
        questions: list[Question] = []
        known: dict[str, Baseline] = {}
        groups: dict[str, tuple[str, ...]] = {}
        for split in self.test:
            names = []
            for category, numbers in split.by_category.items():
                if self.only and category not in self.only.get(split.name, (category,)):
                    continue
                told = split.name if category in known else category  # two datasets of captions are two categories
                found = [self._question(split.name, category, told, sample) for sample in split.read(numbers[: self.limit])]
                baseline = self.baselines.get(split.name, {}).get(category)
                names.append(told)
                for each in [found, *self._choices(found)]:
                    questions += each
                    if baseline is not None:
                        known[each[0].category] = baseline
                self._own[split.name, category] = found
            groups[split.name] = tuple(names)
        return Suite(
            name=self.name,
            questions=questions,
            ask=self.ask,
            baselines=known,
            extra_metrics={name: ("cider",) for split in self.test if split.name.startswith("captions") for name in groups[split.name]},
            groups=groups,
            always={FEW_SHOT: IN_CONTEXT_SHOTS},
        )

    def _question(self, dataset: str, category: str, told: str, sample: Sample) -> Question:
        question = to_question(dataset, told, sample)
        self._home[question.id] = (dataset, category)
        return question

    def _choices(self, questions: Sequence[Question]) -> list[list[Question]]:
        """Videos are also asked with the answers to choose from: all that this question has."""
        if not questions or not questions[0].is_video:
            return []
        answers: dict[str, set[str]] = {}
        for question in [*questions, *self._trained(*self._home[questions[0].id])]:
            answers.setdefault(question.text, set()).add(question.answer)
        found = [
            replace(each, id=f"{each.id}/choice", category=f"{each.category}_choice", options=tuple(sorted(answers[each.text])))
            for each in questions
        ]
        for each, question in zip(found, questions, strict=True):
            self._home[each.id] = self._home[question.id]
        return [found] if all(len(each.options) > 1 for each in found) else []

    def _trained(self, dataset: str, category: str) -> list[Question]:
        """The first questions of a category's training split: they show which answers there are."""
        split = self.train.get(dataset)
        numbers = split.by_category.get(category, [])[:_EXAMPLES] if split else []
        return [to_question(f"{dataset}/train", category, sample) for sample in (split.read(numbers) if split else [])]

    # --- shots

    def ask(self, question: Question, shots: int) -> tuple[Question, Sequence[Question]]:
        """The question, and its shots: others of its category from the training split, drawn by seed and question."""
        dataset, category = self._home[question.id]
        if category == FEW_SHOT:
            return self._in_context(question, dataset, shots), ()
        if not shots:
            return question, ()
        split = self.train.get(dataset)
        if split is None:
            others = [other for other in self._own[dataset, category] if other.id != question.id]
            return question, [others[place] for place in draw(self.seed, question, len(others), shots)]
        numbers = split.by_category.get(category, [])
        return question, [self._shot(dataset, category, numbers[place]) for place in draw(self.seed, question, len(numbers), shots)]

    def _shot(self, dataset: str, category: str, number: int) -> Question:
        key = (dataset, category, number)
        if key not in self._shots:
            self._shots[key] = to_question(f"{dataset}/train", category, self.train[dataset].read([number])[0])
        return self._shots[key]

    # --- few-shot documents, whose rule (colour, shape or number) stands in the examples alone

    def _in_context(self, question: Question, dataset: str, shots: int) -> Question:
        """The document's last image behind `shots` examples of its rule: none say nothing, more say it again and again."""
        own = _examples(question.turns, question.images)
        examples = own[:shots]
        if shots > len(own):
            pool = self._examples_of_rule(dataset).get(str(question.extra.get("rule")), [])
            drawn = stream(self.seed, "examples", question.id, shots).sample(range(len(pool)), min(len(pool), shots - len(own)))
            examples = [pool[place] for place in drawn] + examples
        content: list[Any] = []
        for number, (_, word) in enumerate(examples):
            content += [{"image": number}, word]
        content.append({"image": len(examples)})
        images = (*(picture for picture, _ in examples), question.images[-1])
        return replace(
            question, id=f"{question.id}+{shots}", turns=(Turn("document", tuple(content)),), images=images, shots_inside=len(examples)
        )

    def _examples_of_rule(self, dataset: str) -> dict[str, list[tuple[InMemory, str]]]:
        if self._rules is None:
            self._rules = {}
            split = self.train.get(dataset)
            numbers = split.by_category.get(FEW_SHOT, [])[:_EXAMPLES] if split else []
            for sample in split.read(numbers) if split else []:
                pictures = tuple(InMemory(body) for body in sample.images)
                self._rules.setdefault(str(sample.extra.get("rule")), []).extend(_examples(sample.turns, pictures))
        return self._rules


def _examples(turns: Sequence[Turn], images: Sequence[Any]) -> list[tuple[Any, str]]:
    """(image, word as the document tells it) of all but what is asked."""
    content = [part for turn in turns for part in turn.content]
    return [
        (images[part["image"]], f"{word.rstrip()} ")
        for part, word in pairwise(content)
        if not isinstance(part, str) and isinstance(word, str)
    ]


def to_question(dataset: str, category: str, sample: Sample) -> Question:
    """What is asked of a made sample, and its known answer."""
    known = sample.extra["answer"]
    common: dict[str, Any] = {
        "id": f"{dataset}/{sample.key}", "category": category, "metric": _METRICS[known["type"]], "gold": {"value": known["value"]},
        "images": tuple(InMemory(body) for body in sample.images), "is_video": sample.kind == "video",
        "extra": {name: value for name, value in sample.extra.items() if name in ("boxes", "rule", "times")},
    }  # fmt: skip
    if sample.kind == "preference":
        options = sorted("".join(map(str, turn.content)) for turn in sample.turns[-2:])
        return Question(form="chat", turns=sample.turns[:-2], answer=known["value"], options=tuple(options), **common)
    if sample.turns[0].role != "document":
        asked = next(place for place, turn in enumerate(sample.turns) if turn.role == "assistant")
        return Question(form="chat", turns=sample.turns[:asked], answer=_text(sample.turns[asked]), **common)
    *content, last = sample.turns[0].content
    before, value, after = str(last).rpartition(str(known["value"]))
    lead = before[len(before.rstrip()) :]
    kept = (before.rstrip(),) if before.strip() else ()
    return Question(
        form="document", turns=(Turn("document", (*content, *kept)),), answer=value, lead=lead, tail=after, **common
    )  # fmt: skip


def _text(turn: Turn) -> str:
    return "".join(part for part in turn.content if isinstance(part, str))


def datasets_of(name: str) -> list[str]:
    """Of a suite, or of several joined by `+`, each once."""
    return list(dict.fromkeys(dataset for part in name.split("+") for dataset in MADE_SUITES[part]))


def only_of(name: str) -> dict[str, tuple[str, ...]]:
    """Documents without examples are no in-context task."""
    return {} if "interleaved" in name.split("+") else {"interleaved": (FEW_SHOT,)}


def made_suite(store: Store, corpus: Corpus, name: str, *, seed: int, limit: int | None) -> Suite:
    """The suite `name` of a made corpus. Raises ConfigError when the corpus holds none of its datasets."""
    wanted = [dataset for dataset in datasets_of(name) if dataset in corpus.test]
    if not wanted:
        raise ConfigError(
            f"suite {name} asks about {', '.join(datasets_of(name))}, and {store.uri} has {', '.join(sorted(corpus.test))}; "
            "make the corpus with them (`stagecoach data make`)"
        )
    test = [MadeSplit(dataset, store.uri_of(corpus.test[dataset])) for dataset in wanted]
    train = {dataset: MadeSplit(dataset, store.uri_of(folder)) for dataset, folder in corpus.datasets.items()}
    return MadeSuite(name, test, train, seed, limit, corpus.baselines, only_of(name)).build()


def open_made(uri: str, name: str, *, seed: int, limit: int | None) -> Suite:
    """As `made_suite`, at an address."""
    store = open_store(uri)
    return made_suite(store, read_corpus(store), name, seed=seed, limit=limit)
