"""Tasks on scenes of coloured shapes: captions, general questions, refer and ground, several images, knowledge."""

from collections.abc import Sequence
from itertools import combinations, permutations, product
from math import lcm

from stagecoach_workloads.data.made.draw import COLOURS, SHAPES, SIDES, Brush, Picture, box_text, on_canvas
from stagecoach_workloads.data.made.level import Level, stream
from stagecoach_workloads.data.made.task import Case, PairTask, Task

PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NO_RANDOM = stream("geometry")  # where cells stand depends on no chance
MIXED = {("blue", "red"): "purple", ("red", "yellow"): "orange", ("blue", "yellow"): "green"}


def colours(level: Level) -> list[str]:
    return list(COLOURS)[: level.colours]


def shapes(level: Level) -> list[str]:
    return list(SHAPES[: level.shapes])


class Caption(PairTask):
    """One shape: "a red circle"."""

    category = "captions"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case("", f"a {c} {s}", (c, s)) for c, s in product(colours(level), shapes(level))]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return [brush.scene([case.spec])]


class LongCaption(PairTask):
    """Two shapes and where they stand."""

    category = "captions"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        things = list(product(colours(level), shapes(level)))
        return [
            Case("", f"a {a[0]} {a[1]} at the {PLACES[p]} and a {b[0]} {b[1]} at the {PLACES[q]}", (a, b, p, q))
            for a, b in product(things, things)
            for p, q in combinations(range(4), 2)
        ]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        first, second, p, q = case.spec
        return [brush.scene([first, second], grid=2, places=[p, q])]


class Colour(Task):
    """What colour is the only circle, among other shapes."""

    category = "colour"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"What colour is the {s}?", c, (c, s)) for c, s in product(colours(level), shapes(level))]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        colour, shape = case.spec
        other = (brush.rng.choice(brush.colours), brush.other(brush.shapes, shape))
        return [brush.scene([(colour, shape), other])]


class Shape(Task):
    """What shape is the only red thing."""

    category = "shape"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"What shape is {c}?", s, (c, s)) for c, s in product(colours(level), shapes(level))]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        colour, shape = case.spec
        return [brush.scene([(colour, shape), (brush.other(brush.colours, colour), brush.rng.choice(brush.shapes))])]


class Exists(Task):
    """Is there a red circle? Half the time there is."""

    category = "exists"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        things = product(colours(level), shapes(level))
        return [Case(f"Is there a {c} {s}?", answer, (c, s)) for c, s in things for answer in ("yes", "no")]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        colour, shape = case.spec
        things = [(c, s) for c, s in product(brush.colours, brush.shapes) if (c, s) != (colour, shape)]
        shown = brush.rng.sample(things, 2)
        if case.answer == "yes":
            shown[0] = (colour, shape)
        return [brush.scene(shown)]


class Count(Task):
    """How many circles, among a few others."""

    category = "count"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        numbers = range(1, level.most + 1)
        return [Case(f"How many {s}s are there?", NUMBERS[n], (s, n)) for s, n in product(shapes(level), numbers)]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        shape, number = case.spec
        things = [(brush.rng.choice(brush.colours), shape) for _ in range(number)]
        others = brush.rng.randint(0, 2)
        things += [(brush.rng.choice(brush.colours), brush.other(brush.shapes, shape)) for _ in range(others)]
        side = max(brush.level.grid, 1 + int((brush.level.most + 1) ** 0.5))
        return [brush.scene(things, grid=side)]


class Where(Task):
    """In which quarter the thing stands."""

    category = "where"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"Where is the {s}?", place, (s, number)) for s in shapes(level) for number, place in enumerate(PLACES)]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        shape, place = case.spec
        other = brush.other(brush.shapes, shape)
        free = brush.rng.choice([p for p in range(4) if p != place])
        things = [(brush.rng.choice(brush.colours), shape), (brush.rng.choice(brush.colours), other)]
        return [brush.scene(things, grid=2, places=[place, free])]


class Ground(Task):
    """Where is the red circle? Its box on the 1000 x 1000 canvas. Boxes of two cells never overlap, so one guess hits one cell."""

    category = "ground"
    metric = "box"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [
            Case(f"Box of the {c} {s}?", cell_text(level, place), (c, s, place))
            for c, s in product(colours(level), shapes(level))
            for place in range(level.grid**2)
        ]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        colour, shape, place = case.spec
        return [_with_another(brush, colour, shape, place)]


class Refer(Task):
    """What stands in this box?"""

    category = "refer"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [
            Case(f"What is in {cell_text(level, place)}?", f"{c} {s}", (c, s, place))
            for c, s in product(colours(level), shapes(level))
            for place in range(level.grid**2)
        ]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        colour, shape, place = case.spec
        return [_with_another(brush, colour, shape, place)]


def cell_text(level: Level, place: int) -> str:
    """The box of a cell as text; it is the same on every square image of the level."""
    empty = Brush(level, "train", _NO_RANDOM)
    picture = empty.blank()
    return box_text(on_canvas(empty.cell(picture, place), picture.image.size))


def _with_another(brush: Brush, colour: str, shape: str, place: int) -> Picture:
    free = brush.rng.choice([p for p in range(brush.level.grid**2) if p != place])
    other = brush.rng.choice([(c, s) for c, s in product(brush.colours, brush.shapes) if (c, s) != (colour, shape)])
    return brush.scene([(colour, shape), other], places=[place, free])


class Sides(Task):
    """Knowledge about what is seen: how many sides it has."""

    category = "sides"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        known = [s for s in shapes(level) if s in SIDES]
        each = lcm(*(sum(SIDES[t] == SIDES[s] for t in known) for s in known))
        return [
            Case("How many sides does the shape have?", str(SIDES[s]), (s,))
            for s in known
            for _ in range(each // sum(SIDES[t] == SIDES[s] for t in known))  # every answer equally often
        ]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        return [brush.scene([(brush.rng.choice(brush.colours), case.spec[0])])]


class Mix(Task):
    """Knowledge: which colour two paints make."""

    category = "mix"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case("Which colour do these two paints make?", made, pair) for pair, made in MIXED.items()]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        first, second = brush.rng.sample(case.spec, 2)
        return [brush.scene([(first, "circle"), (second, "circle")], grid=2)]


class Same(Task):
    """Do two images show the same thing?"""

    category = "same"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case(f"Do both images show the same {what}?", answer, (what,)) for what in ("colour", "shape") for answer in ("yes", "no")]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        options = brush.colours if case.spec[0] == "colour" else brush.shapes
        first = brush.rng.choice(options)
        second = first if case.answer == "yes" else brush.other(options, first)
        rest = brush.shapes if case.spec[0] == "colour" else brush.colours
        pairs = [(value, brush.rng.choice(rest)) for value in (first, second)]
        return [brush.scene([pair if case.spec[0] == "colour" else (pair[1], pair[0])]) for pair in pairs]


class More(Task):
    """Which of three images has the most shapes?"""

    category = "most"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        return [Case("Which image has the most shapes?", name, (place,)) for place, name in enumerate(("first", "second", "third"))]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        top = brush.rng.randint(2, brush.level.most)
        numbers = [brush.rng.randint(1, top - 1) for _ in range(3)]
        numbers[case.spec[0]] = top
        return [brush.scene([(brush.rng.choice(brush.colours), brush.rng.choice(brush.shapes)) for _ in range(n)]) for n in numbers]


class Odd(Task):
    """Which of three images is the odd one out?"""

    category = "odd"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        names = enumerate(("first", "second", "third"))
        return [Case(f"Which image differs in {what}?", name, (place, what)) for place, name in names for what in ("colour", "shape")]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        place, what = case.spec
        colour, shape = brush.rng.choice(brush.colours), brush.rng.choice(brush.shapes)
        odd = (brush.other(brush.colours, colour), shape) if what == "colour" else (colour, brush.other(brush.shapes, shape))
        return [brush.scene([odd if number == place else (colour, shape)]) for number in range(3)]


class Difference(Task):
    """Counting and arithmetic: how many more circles than squares."""

    category = "difference"

    def cases(self, level: Level, split: str) -> Sequence[Case]:
        asked = permutations(shapes(level), 2)
        top = min(level.most, 4)
        return [Case(f"How many more {a}s than {b}s?", NUMBERS[n], (a, b, n)) for a, b in asked for n in range(top)]

    def draw(self, case: Case, brush: Brush) -> list[Picture]:
        more, fewer, number = case.spec
        few = brush.rng.randint(1, 2)
        kinds = [more] * (few + number) + [fewer] * few
        return [brush.scene([(brush.rng.choice(brush.colours), shape) for shape in kinds], grid=3)]
