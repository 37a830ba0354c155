"""Metrics against their references: values made by the published code, hand-computed ones, and independent computations."""

import json
import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach_workloads.evaluation.metrics import score
from stagecoach_workloads.evaluation.metrics.anls import anls, distance
from stagecoach_workloads.evaluation.metrics.boxes import box_hits, iou, point_hits, read_box, read_point
from stagecoach_workloads.evaluation.metrics.cider import cider
from stagecoach_workloads.evaluation.metrics.exact import choice, exact, exact_any
from stagecoach_workloads.evaluation.metrics.ptb import tokenize
from stagecoach_workloads.evaluation.metrics.relaxed import relaxed
from stagecoach_workloads.evaluation.metrics.vqa import normalise, normalise_textvqa, vqa_accuracy
from stagecoach_workloads.evaluation.statistics import bootstrap, p_at_least

FIXTURE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures/captions.json").read_text())


def test_words_of_captions_are_those_of_the_reference_tokenizer() -> None:
    differing = [case for case in FIXTURE["captions"] if " ".join(tokenize(case["text"])) != case["tokens"]]
    assert differing == []


def test_cider_is_the_reference_scorers() -> None:
    case = FIXTURE["cider"]
    found = cider(case["answers"], case["references"])
    assert found == pytest.approx(case["scores"], abs=1e-9)
    assert sum(found) / len(found) == pytest.approx(case["mean"], abs=1e-9)
    assert found[4] == 0  # said nothing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"),
        ("a dog, a cat", "dog cat"),
        ("100,978", "100978"),
        ("two", "2"),
        ("None", "0"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("the girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("wouldnt've", "wouldn't've"),
        ("yes\n", "yes"),
        ("t-shirt", "t shirt"),
        ("a t-shirt -", "tshirt"),
        ("oclock", "o'clock"),
        ("U.S.", "us"),
    ],
)
def test_vqa_answers_are_prepared_as_the_official_page_says(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_textvqa_takes_possessives_apart() -> None:
    assert normalise_textvqa("Macy's, NY?") == "macy 's ny"


@pytest.mark.parametrize("agreeing", range(11))
def test_vqa_accuracy_is_the_mean_over_all_sets_of_nine_people(agreeing: int) -> None:
    answers = ["Yes."] * agreeing + [f"other {number + 11}" for number in range(10 - agreeing)]
    nines = [sum(normalise(each) == "yes" for each in chosen) for chosen in combinations(answers, 9)]
    expected = Fraction(sum(min(Fraction(1), Fraction(count, 3)) for count in nines), len(nines))
    assert vqa_accuracy("yes", answers) == pytest.approx(float(expected))


def test_both_sides_are_prepared_even_when_all_agree() -> None:
    assert vqa_accuracy("the Two", ["2"] * 10) == 1
    assert vqa_accuracy("2", ["two"] * 10) == 1


def test_anls() -> None:
    assert anls("Hello  World", ["hello world"]) == 1
    assert anls("hello", ["jello", "x"]) == pytest.approx(0.8)
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abc", ["xyz"]) == 0
    assert anls("abcdef", ["abxyzw"]) == 0  # 1/3 alike is below the threshold
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == 3


def test_relaxed_accuracy() -> None:
    assert [relaxed(answer, "100") for answer in ("95", "105", "94.9", "105.1", "100 ")] == [1, 1, 0, 0, 1]
    assert relaxed("5%", "0.05") == 1
    assert relaxed("-10", "-10.4") == 1
    assert relaxed("Blue", "blue") == 1
    assert relaxed("0", "0") == 1
    assert relaxed("0.0", "0") == 0  # compared as text, as everybody does
    assert relaxed("nan", "3") == 0


def test_iou_against_counting_cells() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes = [sorted(rng.choice(30, 2, replace=False)) + sorted(rng.choice(30, 2, replace=False)) for _ in range(2)]
        one, other = [(x1, y1, x2, y2) for x1, x2, y1, y2 in boxes]
        grids = [np.zeros((30, 30), bool) for _ in range(2)]
        for grid, (x1, y1, x2, y2) in zip(grids, (one, other), strict=True):
            grid[y1:y2, x1:x2] = True
        assert iou(one, other) == pytest.approx((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


def test_boxes_are_read_from_what_models_write() -> None:
    assert read_box("It is at [1, 2, 30.5, 40].") == (1, 2, 30.5, 40)
    assert read_box("<1,2,3,4>") == (1, 2, 3, 4)
    assert read_box("[1, 2, 3]") is None
    assert read_point("[5, 6]") == (5, 6)
    assert read_point("[0, 0, 10, 20]") == (5, 10)
    assert box_hits("[10, 10, 0, 0]", [0, 0, 10, 10]) == 0  # corners in the wrong order
    assert box_hits("[0, 0, 10, 5]", [0, 0, 10, 10]) == 0  # exactly 0.5 is not above it
    assert box_hits("[0, 0, 10, 6]", [0, 0, 10, 10]) == 1
    assert point_hits("[3, 4]", [0, 0, 3, 4]) == 1
    assert point_hits("nowhere", [0, 0, 3, 4]) == 0


def test_choices_and_texts() -> None:
    options = ["cat", "dog", "big dog"]
    said = {"B": 1, "(B)": 1, "B. dog": 1, "b": 1, "dog": 1, "Dog.": 1, "A": 0, "D": 0, "big dog": 0, "": 0, "Because": 0}
    assert {answer: choice(answer, options, 1) for answer in said} == said
    forms = ("B)", "B:", "B.", "(B) dog", "B) it is", "B: dog", "B\nIt barks.")
    assert [choice(answer, options, 1) for answer in forms] == [1] * len(forms)
    assert exact("red  circle.", "red circle")
    assert not exact("Red circle", "red circle")
    assert exact_any("1,000.00", ["1000"]) == 1
    assert score("exact", "x", {"value": "x"}) == 1


def test_an_article_is_no_letter() -> None:
    options = ["a blue car", "A red bus", "I. Newton", "A. Lincoln"]
    meant = {"A red bus": 1, "a red bus.": 1, "A blue car": 0, "A. Lincoln": 3, "A. a blue car": 0, "A": 0, "A bus": None, "(A bus)": None}
    for answer, number in meant.items():
        assert [choice(answer, options, right) for right in range(4)] == [right == number for right in range(4)], answer


def test_a_lone_letter_is_what_was_asked_for_even_where_it_is_an_options_text() -> None:
    assert [choice("A", ["B", "A"], number) for number in range(2)] == [1, 0]
    assert [choice("V", ["I", "II", "V"], number) for number in range(3)] == [0, 0, 1]  # there is no option V by letter


def test_a_small_letter_counts_where_it_stands_alone_and_is_no_options_text() -> None:
    for said in ("b", "(b)", "b)", "b.", "(b).", "b:", " b\n"):
        assert [choice(said, ["cat", "dog", "fish"], right) for right in range(3)] == [0, 1, 0], said
    for said in ("a red bus", "a", "d", "b it is", "b. dog"):
        assert choice(said, ["cat", "dog", "fish"], 1) == 0, said
    assert [choice("a", ["b", "a"], right) for right in range(2)] == [0, 1]


def test_luck_is_the_exact_binomial() -> None:
    for samples, correct, chance in ((10, 7, Fraction(1, 4)), (200, 65, Fraction(1, 4)), (5, 0, Fraction(1, 2)), (30, 30, Fraction(9, 10))):
        exactly = sum(math.comb(samples, hits) * chance**hits * (1 - chance) ** (samples - hits) for hits in range(correct, samples + 1))
        assert p_at_least(correct, samples, float(chance)) == pytest.approx(float(exactly), rel=1e-9)
    assert p_at_least(3, 5, 1.0) == 1
    assert p_at_least(3, 5, 0.0) == 0


def test_intervals_are_those_of_the_normal_law_and_repeat() -> None:
    scores = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap(scores, seed=1)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)
    assert (low, high) == bootstrap(scores, seed=1)
    assert bootstrap([0.5], seed=0) == (0.5, 0.5)


def test_whoever_waits_for_cider_hears_of_every_caption() -> None:
    heard: list[None] = []
    cider(["a dog", "a cat"], [["a dog"], ["a cat", "two cats"]], beat=lambda: heard.append(None))
    assert len(heard) == 4
