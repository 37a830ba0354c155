"""Every answer of the made corpus follows from what was drawn: found again from the boxes alone, without the generator's own cases."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stagecoach_workloads.data.images import decode
from stagecoach_workloads.data.made.corpus import DATASETS, MakeJob, cases_of
from stagecoach_workloads.data.made.draw import COLOURS
from stagecoach_workloads.data.made.level import PROFILES
from stagecoach_workloads.data.made.pages import Danger, Sum
from stagecoach_workloads.data.samples import Sample

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = {"circle": "0", "triangle": "3", "square": "4", "diamond": "4", "star": "10", "cross": "12"}
PAINTS = {"blue red": "purple", "red yellow": "orange", "blue yellow": "green"}


def boxes(sample: Sample, image: int | None = None) -> list[dict[str, Any]]:
    return [box for box in sample.extra["boxes"] if image is None or box["image"] == image]


def things(sample: Sample, image: int | None = None) -> list[tuple[str, str]]:
    """(colour, shape) of what stands on one image, or on all."""
    return [(box["label"].split()[0], box["label"].split()[1]) for box in boxes(sample, image)]


def asked(pattern: str, sample: Sample) -> tuple[str, ...]:
    found = re.fullmatch(pattern, sample.extra["question"])
    assert found, sample.extra["question"]
    return found.groups()


def only(found: list[str]) -> str:
    assert len(set(found)) == 1, found
    return found[0]


def centre(box: list[int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def quarter(box: list[int]) -> str:
    x, y = centre(box)
    return f"{'top' if y < 500 else 'bottom'} {'left' if x < 500 else 'right'}"


def overlap(one: list[int], other: list[int]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height) / ((one[2] - one[0]) * (one[3] - one[1]))


def inside(sample: Sample, text: str) -> str:
    """Label of what stands mostly in the box that a text names."""
    named = [int(part) for part in re.findall(r"\d+", text)]
    return only([box["label"] for box in boxes(sample) if overlap(box["box"], named) > 0.5])


def box_of(sample: Sample, label: str) -> list[int]:
    return next(box["box"] for box in boxes(sample) if box["label"] == label)


def count_of(sample: Sample, shape: str) -> int:
    return sum(found == shape for _, found in things(sample))


def differing(sample: Sample, part: int) -> str:
    seen = [things(sample, image)[0][part] for image in range(3)]
    [odd] = [place for place, value in enumerate(seen) if seen.count(value) == 1]
    return ("first", "second", "third")[odd]


def moved(sample: Sample) -> str:
    """Where the shape went from the first frame to the last."""
    (x1, y1), (x2, y2) = centre(boxes(sample, 0)[0]["box"]), centre(boxes(sample, len(sample.images) - 1)[0]["box"])
    if abs(x2 - x1) > abs(y2 - y1):
        return "right" if x2 > x1 else "left"
    return "down" if y2 > y1 else "up"


def extreme_bar(sample: Sample) -> str:
    [what] = asked(r"Which bar is the (highest|lowest)\?", sample)
    tall: dict[str, int] = {box["label"].removeprefix("bar "): box["box"][3] - box["box"][1] for box in boxes(sample)}
    ordered = sorted(tall, key=lambda label: tall[label])
    return ordered[-1] if what == "highest" else ordered[0]


def printed(sample: Sample) -> str:
    """What the two lines print, by Python itself."""
    lines = [box["label"] for box in boxes(sample)]
    known: dict[str, Any] = {}
    exec(lines[0], {"__builtins__": {}}, known)
    return str(eval(lines[1].removeprefix("print(").removesuffix(")"), {"__builtins__": {}}, known))


def same(sample: Sample) -> str:
    part = 0 if asked(r"Do both images show the same (\w+)\?", sample) == ("colour",) else 1
    return "yes" if things(sample, 0)[0][part] == things(sample, 1)[0][part] else "no"


def most(sample: Sample) -> str:
    numbers = [len(boxes(sample, image)) for image in range(3)]
    assert numbers.count(max(numbers)) == 1
    return ("first", "second", "third")[numbers.index(max(numbers))]


def difference(sample: Sample) -> str:
    one, other = asked(r"How many more (\w+)s than (\w+)s\?", sample)
    return NUMBERS[count_of(sample, one) - count_of(sample, other)]


def field(sample: Sample) -> str:
    [name] = asked(r"What is the (\w+)\?", sample)
    return only([box["label"].partition(": ")[2] for box in boxes(sample) if box["label"].startswith(f"{name}: ")])


def cells(sample: Sample) -> list[list[str]]:
    """What the cells of a table of two rows hold, by where they stand."""
    down = sorted(boxes(sample), key=lambda box: box["box"][1])
    return [[cell["label"] for cell in sorted(row, key=lambda box: box["box"][0])] for row in (down[:2], down[2:])]


def first_of_two(sample: Sample) -> str:
    named = asked(r"Which came first, (\w+) or (\w+)\?", sample)
    assert {things(sample, 0)[0][0], things(sample, len(sample.images) - 1)[0][0]} == set(named)
    return things(sample, 0)[0][0]


def caption(sample: Sample) -> str:
    parts = [f"a {box['label']}" for box in boxes(sample)]
    return parts[0] if len(parts) == 1 else " and ".join(f"a {box['label']} at the {quarter(box['box'])}" for box in boxes(sample))


READ: dict[str, Callable[[Sample], Any]] = {
    "colour": lambda s: only([c for c, shape in things(s) if shape == asked(r"What colour is the (\w+)\?", s)[0]]),
    "shape": lambda s: only([shape for c, shape in things(s) if c == asked(r"What shape is (\w+)\?", s)[0]]),
    "exists": lambda s: "yes" if asked(r"Is there a (\w+) (\w+)\?", s) in things(s) else "no",
    "count": lambda s: NUMBERS[count_of(s, asked(r"How many (\w+)s are there\?", s)[0])],
    "where": lambda s: only([quarter(box["box"]) for box in boxes(s) if box["label"].endswith(asked(r"Where is the (\w+)\?", s)[0])]),
    "ground": lambda s: box_of(s, " ".join(asked(r"Box of the (\w+) (\w+)\?", s))),
    "refer": lambda s: inside(s, s.extra["question"]),
    "chart": extreme_bar,
    "form": field,
    "program": printed,
    "difference": difference,
    "sides": lambda s: SIDES[things(s)[0][1]],
    "mix": lambda s: PAINTS[" ".join(sorted(c for c, _ in things(s)))],
    "same": same,
    "most": most,
    "odd": lambda s: differing(s, 0 if asked(r"Which image differs in (\w+)\?", s) == ("colour",) else 1),
    "direction": moved,
    "mover": lambda s: only([shape for _, shape in things(s)]),
    "order": first_of_two,
    "find_widget": lambda s: box_of(s, asked(r"Box of (\w+)\?", s)[0]),
    "tap_widget": lambda s: box_of(s, asked(r"Tap (\w+)\.", s)[0]),
    "name_widget": lambda s: inside(s, s.extra["question"]),
    "captions": caption,
    "ocr_pages": lambda s: " / ".join(box["label"] for box in boxes(s)),
    "ocr_tables": lambda s: " / ".join(" ".join(row) for row in cells(s)),
    "table": lambda s: cells(s)["AB".index(asked(r"What is in row (\w), column \w\?", s)[0])][int(asked(r".*column (\d)\?", s)[0]) - 1],
    "text_sum": lambda s: str(sum(map(int, asked(r"(?:\w+ asks: w|W)hat is (\d+) \+ (\d+)\?", s)))),
    "repeat": lambda s: " ".join(asked(r"Say (\w+(?: \w+)?)\.", s)),
    "facts": lambda s: str(sum(map(int, re.findall(r"\d+", s.extra["question"])))),
}
WITHOUT_BOXES = {"sign", "sum", "lists", "few_shot", "story", "preference", "unsafe_sign", "unsafe_text"}


def test_every_category_is_read_again_or_named_as_one_without_boxes() -> None:
    assert {task.category for _, tasks in DATASETS.values() for task in tasks} == READ.keys() | WITHOUT_BOXES


@pytest.mark.parametrize("profile", ["learn", "bench"])
@pytest.mark.parametrize("name", [name for name, (_, tasks) in DATASETS.items() if any(task.category in READ for task in tasks)])
def test_the_answer_is_what_the_boxes_say(name: str, profile: str) -> None:
    checked = Counter[str]()
    for number in range(60 if profile == "learn" else 9):
        sample = MakeJob(profile, name, "test", 3).sample(number)
        if sample.category in READ:
            told = sample.extra["answer"]["value"]
            assert (list(told) if isinstance(told, tuple) else told) == READ[sample.category](sample), (sample.category, number)
            checked[sample.category] += 1
    assert checked.keys() == {task.category for task in DATASETS[name][1]} & READ.keys()


def test_what_is_learned_from_is_the_answer_that_is_scored() -> None:
    """The last turn of a conversation, for text and boxes alike; a point lies in its box."""
    for name, (kind, _) in DATASETS.items():
        for number in range(12):
            sample = MakeJob("learn", name, "train", 1).sample(number)
            value, said = sample.extra["answer"]["value"], "".join(str(part) for part in sample.turns[-1].content)
            if sample.extra["answer"]["type"] == "point":
                x, y = (int(part) for part in re.findall(r"\d+", said))
                assert value[0] < x < value[2]
                assert value[1] < y < value[3]
            elif sample.extra["answer"]["type"] == "box":
                assert [int(part) for part in re.findall(r"\d+", said)] == value
            elif kind in ("conversation", "video"):
                assert said == value
            elif kind == "preference":
                assert sample.turns[-2].content == (value,)
                assert sample.turns[-1].content != (value,)
            else:
                assert value in said


def test_sums_are_sums_and_refusals_follow_the_sign() -> None:
    level = PROFILES["learn"].level
    for case in cases_of(Sum, level, "test"):
        assert str(sum(map(int, re.findall(r"\d+", case.spec[0])))) == case.answer
    for case in cases_of(Danger, level, "test"):
        assert (case.answer == Danger.REFUSAL) == (case.spec[0] in Danger.UNSAFE)


@pytest.mark.parametrize("name", ["captions", "captions_synthetic", "sft_general", "sft_refer_ground", "video"])
def test_the_boxes_lie_where_that_colour_is(name: str) -> None:
    """Else boxes and answers could agree and both be wrong: the middle of a filled shape has the colour that its label names."""
    for number in range(25):
        sample = MakeJob("learn", name, "test", 5).sample(number)
        for box in boxes(sample):
            pixels = decode(sample.images[box["image"]])
            x, y = centre(box["box"])
            seen = pixels[int(y * pixels.shape[0] / 1000), int(x * pixels.shape[1] / 1000)].astype(int)
            nearest = min(COLOURS, key=lambda colour: int(np.abs(seen - COLOURS[colour]).sum()))
            assert nearest == box["label"].split()[0], (sample.key, box, seen)
