"""What a task is: a finite list of equally likely cases (question, answer, what to draw), and how a case is drawn.

The list fixes the joint distribution of questions and answers, and everything else that is drawn is independent of both. So the best
score without looking is exact: per question the most frequent answer. `baselines` computes it with fractions.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from stagecoach_workloads.data.made.draw import Brush, Picture, on_canvas
from stagecoach_workloads.data.made.level import Level
from stagecoach_workloads.data.samples import Content, Turn, document, image


@dataclass(frozen=True)
class Case:
    """`question` is all the text a reader has before the answer. `answer` is what is scored. `spec` is what to draw."""

    question: str
    answer: str
    spec: tuple[Any, ...] = ()


@dataclass
class Made:
    """A drawn case: turns, pictures, and the known answer."""

    turns: tuple[Turn, ...]
    pictures: list[Picture] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Task:
    """One category. Subclasses give `cases` and `draw`; most need nothing else."""

    category: str
    metric: str = "exact"  # exact: the text; box: IoU > 0.5; point: inside the box
    lossless: bool = False  # PNG for text, JPEG for scenes

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        """All cases, equally likely. Deterministic."""
        raise NotImplementedError

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        """The case's images; everything but the case comes from the brush."""
        raise NotImplementedError

    def build(self, case: Case, brush: Brush) -> Made:
        """A conversation: images, then the question; the answer."""
        pictures = self.draw(case, brush)
        user: tuple[Content, ...] = (*(image(number) for number in range(len(pictures))), case.question)
        return Made((Turn("user", user), Turn("assistant", (case.answer,))), pictures)

    def answer(self, case: Case) -> dict[str, Any]:
        """The machine-checkable answer of a sample."""
        value: Any = case.answer
        if self.metric in ("box", "point"):
            value = case.spec[0] if self.metric == "point" else [int(part) for part in case.answer.strip("[]").split(",")]
        return {"type": self.metric, "value": value}


class PairTask(Task):
    """An image and its text, with no question: captions and pages."""

    def build(self, case: Case, brush: Brush) -> Made:
        pictures = self.draw(case, brush)
        return Made(document(image(0), case.answer), pictures)


def baselines(cases: Sequence[Case]) -> dict[str, float]:
    """`chance`: one of the question's possible answers at random (of the category's, where the question leaves but one). `blind`: the best
    score without looking. Both exact."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        by_question[case.question][case.answer] += 1
    total, everything = len(cases), len({case.answer for case in cases})
    options = {question: len(answers) if len(answers) > 1 else everything for question, answers in by_question.items()}
    chance = sum(Fraction(sum(answers.values()), total) / options[question] for question, answers in by_question.items())
    blind = sum(Fraction(max(answers.values()), total) for answers in by_question.values())
    return {"chance": float(chance), "blind": float(blind)}


def boxes_of(pictures: list[Picture]) -> list[dict[str, Any]]:
    """What was drawn where, on the 1000 x 1000 canvas of each image."""
    return [
        {"image": number, "label": label, "box": on_canvas(box, picture.image.size)}
        for number, picture in enumerate(pictures)
        for label, box in picture.boxes
    ]
