"""Asks a model, a batch at a time. Greedy: the same checkpoint gives the same answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stagecoach_workloads.data.dataset import ContentError
from stagecoach_workloads.data.images import ImageRefused
from stagecoach_workloads.data.media import MediaRefused
from stagecoach_workloads.data.samples import SampleError
from stagecoach_workloads.evaluation.gold import gold_of
from stagecoach_workloads.evaluation.metrics import is_single, score
from stagecoach_workloads.evaluation.prompts import Asked, PromptMaker
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.segments import Answer
from stagecoach_workloads.evaluation.suite import Item, Suite
from stagecoach_workloads.models.generation import Sampling, generate
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.scoring import score_options

TOO_LONG = "longer than the model's context, even without shots"


@dataclass
class _Open:
    """An item on its way to an answer."""

    place: int
    item: Item
    question: Question
    asked: Asked
    gold: dict[str, Any]


@dataclass
class Answerer:
    """A model, and how it is asked. `beat` is called before every question, since its images are read then, and every batch; what it
    raises ends the work."""

    model: MultimodalModel
    maker: PromptMaker
    batch_size: int
    beat: Callable[[], None] = lambda: None

    def answer(self, suite: Suite, items: Sequence[Item]) -> list[Answer]:
        """One answer an item, in their order. Damaged images and prompts that do not fit are told in `trouble`."""
        found: dict[int, Answer] = {}
        batches: dict[tuple[bool, tuple[str, ...]], list[_Open]] = defaultdict(list)
        for place, item in enumerate(items):
            self.beat()
            question, shots = suite.ask(item.question, item.shots)
            try:
                asked, gold = self.maker.ask(question, shots), gold_of(question)
            except (ContentError, ImageRefused, MediaRefused, SampleError) as error:
                found[place] = _answer(item, question, None, dict(question.gold), "", trouble=str(error)[:300])
                continue
            if asked.prompt is None:
                found[place] = _answer(item, question, asked, gold, "", trouble=TOO_LONG)
                continue
            batches[bool(question.options), asked.stops].append(_Open(place, item, question, asked, gold))
        for (has_options, stops), waiting in batches.items():
            waiting.sort(key=_length)
            for first in range(0, len(waiting), self.batch_size):
                self.beat()
                batch = waiting[first : first + self.batch_size]
                for each, (text, finished) in zip(batch, self._choose(batch) if has_options else self._say(batch, stops), strict=True):
                    found[each.place] = _answer(each.item, each.question, each.asked, each.gold, text, finished=finished)
        return [found[place] for place in range(len(items))]

    def _say(self, batch: Sequence[_Open], stops: tuple[str, ...]) -> list[tuple[str, bool]]:
        """Greedy generation."""
        sampling = Sampling(max_new_tokens=self.maker.max_new_tokens, stop_tokens=self.maker.stop_tokens, stop_strings=stops)
        prompts = [each.asked.prompt for each in batch if each.asked.prompt is not None]
        said = generate(self.model, prompts, sampling, decode=self.maker.tokenizer.decode, rows=self.batch_size)
        return [((each.text or "").strip(), each.finished) for each in said]

    def _choose(self, batch: Sequence[_Open]) -> list[tuple[str, bool]]:
        """The likeliest of the options, by the mean over its tokens."""
        encode = self.maker.tokenizer.encode
        lead = "" if self.maker.is_tuned else " "
        options = [[encode(lead + option) for option in each.question.options] for each in batch]
        prompts = [each.asked.prompt for each in batch if each.asked.prompt is not None]
        scores = score_options(self.model, prompts, options, rows=self.batch_size)
        best = [max(range(len(row)), key=lambda place, row=row: row[place].mean) for row in scores]  # type: ignore[misc]
        return [(each.question.options[place], True) for each, place in zip(batch, best, strict=True)]


def _length(each: _Open) -> int:
    return len(each.asked.prompt.tokens) if each.asked.prompt is not None else 0


def _answer(
    item: Item, question: Question, asked: Asked | None, gold: dict[str, Any], text: str, *, finished: bool = True, trouble: str = ""
) -> Answer:
    single = is_single(question.metric)
    value = score(question.metric, text, gold) if single and not trouble else 0.0
    return Answer(
        id=item.id,
        category=question.category,
        metric=question.metric,
        shots=item.shots,
        shots_shown=asked.shots + question.shots_inside if asked else 0,
        question=question.text,
        gold=gold,
        answer=text,
        score=value if single else None,
        finished=finished,
        trouble=trouble,
        images=len(question.images),
        options=list(question.options),
    )
