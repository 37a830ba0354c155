"""Aggregates of an evaluation, by hand: means over categories and groups, MMBase, and what went wrong."""

from dataclasses import replace

import pytest

from stagecoach.contract.evaluation import MADE_SUITES
from stagecoach_workloads.evaluation.scores import aggregates, mmbase, score_of, scores_of
from stagecoach_workloads.evaluation.segments import Answer
from stagecoach_workloads.evaluation.suite import Suite

GROUPS = {
    "sft_general": ("colour", "shape"),
    "sft_text_rich": ("chart",),
    "sft_science": ("sides",),
    "sft_math": ("sum",),
    "sft_code": ("program",),
}
RIGHT = {"colour": 4, "shape": 2, "chart": 3, "sides": 4, "sum": 0, "program": 2}  # of 4 each
SUITE = Suite(name="mmbase", questions=(), ask=lambda question, _: (question, ()), groups=GROUPS)


def answer(category: str, number: int, *, score: float, shots: int = 0, metric: str = "exact") -> Answer:
    return Answer(
        id=f"{category}/{number}@{shots}", category=category, metric=metric, shots=shots, shots_shown=shots, question="?",
        gold={"value": "a red circle"}, answer="a red circle" if score else "a blue square", score=score,
    )  # fmt: skip


def answers(shots: int = 0) -> list[Answer]:
    return [answer(name, number, score=float(number < right), shots=shots) for name, right in RIGHT.items() for number in range(4)]


def test_mmbase_is_the_mean_of_general_text_rich_and_knowledge() -> None:
    """(General + Text-rich + Knowledge) / 3, each a plain mean (recipes.md 2.6)."""
    given = answers()
    told = aggregates(SUITE, scores_of(SUITE, given, seed=0), given)
    general, text_rich, knowledge = (1.0 + 0.5) / 2, 0.75, (1.0 + 0.0 + 0.5) / 3
    assert told["group/sft_general@0"] == pytest.approx(general)
    assert told["mmbase@0"] == pytest.approx((general + text_rich + knowledge) / 3)
    assert told["mean@0"] == pytest.approx(sum(RIGHT.values()) / 4 / len(RIGHT))


def test_mmbase_is_told_only_where_all_three_were_asked() -> None:
    assert set(GROUPS) == set(MADE_SUITES["mmbase"])
    groups = {"sft_general": 0.5, "sft_text_rich": 0.25, "sft_science": 1.0}
    assert mmbase(groups) == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    for missing in groups:
        assert mmbase({name: value for name, value in groups.items() if name != missing}) is None


def test_splits_that_are_apart_have_a_mean_each_and_none_over_all() -> None:
    given = answers()
    told = aggregates(replace(SUITE, splits_apart=True), scores_of(SUITE, given, seed=0), given)
    assert {name for name in told if name.startswith("group/")} == {f"group/{name}@0" for name in GROUPS}
    assert not {"mean@0", "mmbase@0"} & set(told)


def test_each_number_of_shots_has_means_of_its_own_and_captions_count_by_their_words() -> None:
    suite = replace(SUITE, extra_metrics={"colour": ("cider",)})
    given = [*answers(0), *(replace(each, score=0.0, answer="none") for each in answers(8))]
    scores = scores_of(suite, given, seed=0)
    assert {(score.shots, score.metric) for score in scores if score.category == "colour"} == {
        (0, "exact"), (0, "cider"), (8, "exact"), (8, "cider"),
    }  # fmt: skip
    told = aggregates(suite, scores, given)
    assert told["mean@8"] == told["mmbase@8"] == 0
    assert told["mean@0"] == pytest.approx(sum(RIGHT.values()) / 4 / len(RIGHT))  # CIDEr has a scale of its own


def test_what_went_wrong_is_counted() -> None:
    given = answers(4)
    given[0] = replace(given[0], trouble="longer than the model's context", score=0.0, shots_shown=0)
    given[1] = replace(given[1], finished=False)
    given[2] = replace(given[2], shots_shown=1)
    told = aggregates(SUITE, scores_of(SUITE, given, seed=0), given)
    assert (told["not_asked"], told["cut_off"], told["shots_left_out"]) == (1, 1, 3)
    colour = next(score for score in scores_of(SUITE, given, seed=0) if score.category == "colour")
    assert (colour.samples, colour.value) == (4, 0.75)  # a question that could not be asked counts as wrong


def test_scores_without_a_baseline_claim_nothing() -> None:
    score = score_of("colour", "exact", 0, [1.0, 1.0], None, seed=0)
    assert (score.chance, score.blind, score.p_above_chance, score.p_above_blind) == (None, None, None, None)
