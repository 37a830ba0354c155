"""Tasks whose text and images depend on each other over a sequence: interleaved documents, few-shot ones, video, preference; text alone."""

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

from stagecoach_workloads.data.made.draw import Brush, Picture, draw_shape
from stagecoach_workloads.data.made.level import Level, in_split, word_pairs, words
from stagecoach_workloads.data.made.scenes import NUMBERS, Colour, Count, Shape, colours, shapes
from stagecoach_workloads.data.made.task import Case, Made, Task
from stagecoach_workloads.data.samples import Content, Turn, document, image

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")


class FewShot(Task):
    """Images with a word each. Only the earlier examples tell whether colour, shape or count is asked. `question` is all the text that
    a reader without images has: the examples' words, which give the rule away, but not the last image."""

    category = "few_shot"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        options = self.options(level)
        each = 60  # a common multiple of the numbers of options keeps the rules equally likely
        return [
            Case(rule, value, (rule, value))
            for rule, values in options.items()
            for value in values
            for _ in range(max(1, each // len(values)))
        ]

    @staticmethod
    def options(level: Level) -> dict[str, list[str]]:
        return {"colour": colours(level), "shape": shapes(level), "count": list(NUMBERS[1 : min(level.most, 4) + 1])}

    def build(self, case: Case, brush: Brush) -> Made:
        rule, answer = case.spec
        values = self.options(brush.level)[rule]
        shots = brush.rng.randint(2, 4)
        words = [*(brush.rng.choice(values) for _ in range(shots)), answer]
        pictures = [self._example(rule, value, brush) for value in words]
        content: list[Content] = []
        for number, value in enumerate(words):
            content += [image(number), f" {value}. "]
        content[-1] = f" {answer}."
        return Made(document(*content), pictures, {"rule": rule, "shots": shots})

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        rule, value = case.spec
        return [self._example(rule, value, brush)]

    @staticmethod
    def _example(rule: str, value: str, brush: Brush) -> Picture:
        colour = value if rule == "colour" else brush.rng.choice(brush.colours)
        shape = value if rule == "shape" else brush.rng.choice(brush.shapes)
        count = NUMBERS.index(value) if rule == "count" else brush.rng.randint(1, 2)
        return brush.scene([(colour, shape)] * count, grid=2)


class Story(Task):
    """An interleaved document: each sentence names what the image before it shows; the last asks back."""

    category = "story"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        things = list(product(colours(level), shapes(level)))
        return [Case("The first was", f"{c} {s}", (c, s)) for c, s in things]

    def build(self, case: Case, brush: Brush) -> Made:
        things = [case.spec, *((brush.rng.choice(brush.colours), brush.rng.choice(brush.shapes)) for _ in range(brush.rng.randint(1, 2)))]
        content: list[Content] = []
        for number, (colour, shape) in enumerate(things):
            told = f" Here comes a {colour} {shape}. " if number else " Look. "  # the first is named at the end only
            content += [image(number), told]
        content.append(f"The first was a {case.answer}.")
        return Made(document(*content), [brush.scene([thing]) for thing in things])

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return [brush.scene([case.spec])]


class Direction(Task):
    """Video: where a shape moves to."""

    category = "direction"
    MOVES: ClassVar = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"Where does the {s} move?", move, (s, move)) for s in shapes(level) for move in self.MOVES]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        shape, move = case.spec
        colour, side, (dx, dy) = brush.rng.choice(brush.colours), brush.level.size, self.MOVES[move]
        ground, ink = brush.blank().image, brush.shade(colour)
        size, across = side // 3, brush.rng.randint(side // 6, side - side // 2)
        frames = []
        for number in range(brush.level.frames):
            gone = number / (brush.level.frames - 1) * (side - size)
            x = gone if dx > 0 else side - size - gone if dx < 0 else across
            y = gone if dy > 0 else side - size - gone if dy < 0 else across
            picture = Picture(ground.copy())
            box = (round(x), round(y), round(x) + size, round(y) + size)
            draw_shape(picture.pen, shape, box, ink)
            picture.boxes.append((f"{colour} {shape}", box))
            frames.append(picture)
        return frames


class Mover(Direction):
    """Video: what moves."""

    category = "mover"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case("What shape moves?", s, (s, move)) for s in shapes(level) for move in self.MOVES]


class Order(Task):
    """Video: which of two colours came first."""

    category = "order"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        pairs = [(a, b) for a in colours(level) for b in colours(level) if a < b]
        return [Case(f"Which came first, {a} or {b}?", first, (first, b if first == a else a)) for a, b in pairs for first in (a, b)]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        first, second = case.spec
        shape, half = brush.rng.choice(brush.shapes), brush.level.frames // 2
        pictures = [brush.scene([(first, shape)], grid=1), brush.scene([(second, shape)], grid=1)]
        return [pictures[0]] * half + [pictures[1]] * (brush.level.frames - half)


class Preference(Task):
    """Two answers to a question about an image, one right. `question` names both in alphabetical order: without looking it is a coin."""

    category = "preference"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        found = []
        for task in (Colour(), Shape(), Count()):
            cases = task.cases(level, split)
            for case in cases:
                wrong = sorted({other.answer for other in cases if other.question == case.question} - {case.answer})
                found += [
                    Case(f"{case.question} {min(case.answer, no)} or {max(case.answer, no)}", case.answer, (task.category, case, no))
                    for no in wrong
                ]
        return found

    def build(self, case: Case, brush: Brush) -> Made:
        _, inner, wrong = case.spec
        user: tuple[Content, ...] = (image(0), inner.question)
        turns = (Turn("user", user), Turn("chosen", (case.answer,)), Turn("rejected", (wrong,)))
        return Made(turns, self.draw(case, brush))

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        name, inner, _ = case.spec
        task: Task = {"colour": Colour(), "shape": Shape(), "count": Count()}[name]
        return task.draw(inner, brush)


class Facts(Task):
    """Text only: small sums told as stories. The answer follows from the text, so the image-blind optimum is 1."""

    category = "facts"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        numbers = range(1, level.numbers + 1)
        told = [(name, a, b) for name, a, b in product(NAMES, numbers, numbers) if in_split(f"{name}{a}{b}", split)]
        return [Case(f"{name} has {a} nuts and finds {b}. Now {name} has", str(a + b)) for name, a, b in told]

    def build(self, case: Case, brush: Brush) -> Made:
        return Made(document(f"{case.question} {case.answer} nuts."))

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return []


class Lists(Facts):
    """Text only: words said again, in order."""

    category = "lists"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"The words are {a} and {b}. Again:", f"{a} and {b}") for a, b in word_pairs(level, split)]

    def build(self, case: Case, brush: Brush) -> Made:
        return Made(document(f"{case.question} {case.answer}."))


class TextSum(Task):
    """Text-only conversation: a sum. The splits' operands are disjoint; where the level's splits share them, operands with who asks."""

    category = "text_sum"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        pairs = list(product(range(level.numbers), repeat=2))
        if not level.open_vocabulary:
            asked = [(name, a, b) for name, (a, b) in product(NAMES, pairs) if in_split(f"{name}{a}+{b}", split)]
            return [Case(f"{name} asks: what is {a} + {b}?", str(a + b)) for name, a, b in asked]
        return [Case(f"What is {a} + {b}?", str(a + b)) for a, b in pairs if in_split(f"{a}+{b}", split)] or [Case("What is 1 + 1?", "2")]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return []


class Repeat(Task):
    """Text-only conversation: say a word again, or two of a closed vocabulary."""

    category = "repeat"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        said = words(level, split) if level.open_vocabulary else [f"{a} {b}" for a, b in word_pairs(level, split)]
        return [Case(f"Say {text}.", text) for text in said]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return []
