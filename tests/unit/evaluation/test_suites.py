"""Suites of the made corpus: questions, shots, in-context documents, the control with shuffled images."""

import pytest

from stagecoach.contract.dataset import read_corpus
from stagecoach.contract.evaluation import MADE_SUITES, PUBLISHED_SUITES, check_suite
from stagecoach.errors import ConfigError
from stagecoach.storage import open_store
from stagecoach_workloads.evaluation.made import made_suite
from stagecoach_workloads.evaluation.metrics import is_single, score
from stagecoach_workloads.evaluation.question import InMemory, Question
from stagecoach_workloads.evaluation.scores import values_of
from stagecoach_workloads.evaluation.segments import Answer
from stagecoach_workloads.evaluation.statistics import p_at_least
from stagecoach_workloads.evaluation.suite import Suite, shuffled_images


def suite_of(corpus: str, name: str, *, seed: int = 0, limit: int | None = None) -> Suite:
    store = open_store(corpus)
    return made_suite(store, read_corpus(store), name, seed=seed, limit=limit)


@pytest.mark.parametrize(
    "name", ["captions", "vqa", "refer_ground", "multi_image", "in_context", "interleaved", "text", "video", "preference"]
)
def test_every_question_has_its_baseline_and_its_right_answer_scores_1(corpus: str, name: str) -> None:
    suite = suite_of(corpus, name)
    for question in suite.questions:
        assert question.category in suite.baselines
        assert is_single(question.metric)
        assert score(question.metric, question.answer, question.gold) == 1
        assert score(question.metric, "no such thing", question.gold) == 0
        shown = "".join(part for turn in question.turns for part in turn.content if isinstance(part, str))
        if name == "captions":
            assert question.answer not in shown
    assert len({question.id for question in suite.questions}) == len(suite.questions)


def test_videos_are_asked_openly_and_with_answers_to_choose_from(corpus: str) -> None:
    suite = suite_of(corpus, "video")
    chosen = [question for question in suite.questions if question.options]
    assert {question.category for question in chosen} == {"direction_choice", "mover_choice", "order_choice"}
    assert all(question.answer in question.options for question in chosen)
    assert {question.options for question in chosen if question.category == "direction_choice"} == {("down", "left", "right", "up")}


def test_shots_are_drawn_from_the_training_split_by_seed(corpus: str) -> None:
    suite = suite_of(corpus, "vqa")
    question = suite.questions[0]
    _, eight = suite.ask(question, 8)
    _, four = suite.ask(question, 4)
    assert all(shot.id.startswith("sft_general/train/") and shot.category == question.category for shot in eight)
    assert [shot.id for shot in four] == [shot.id for shot in eight][-4:]  # fewer are the last of more
    assert [shot.id for shot in suite_of(corpus, "vqa").ask(question, 8)[1]] == [shot.id for shot in eight]
    assert [shot.id for shot in suite_of(corpus, "vqa", seed=1).ask(question, 8)[1]] != [shot.id for shot in eight]
    assert suite.ask(question, 0)[1] == ()
    assert len({shot.id for shot in suite.ask(question, 16)[1]}) == 16


def test_in_context_rules_stand_in_the_examples_alone(corpus: str) -> None:
    suite = suite_of(corpus, "in_context")
    assert {item.shots for item in suite.items((0,))} == {0, 4, 8}  # without examples is the control
    for question in suite.questions:
        alone, shots = suite.ask(question, 0)
        assert shots == ()
        assert (alone.text, alone.images) == ("<image>", question.images[-1:])
        for number in (2, 8, 16):
            shown, _ = suite.ask(question, number)
            assert shown.text.count("<image>") == number + 1
            assert shown.text.endswith("<image>")
            assert shown.images[-1] is question.images[-1]
            words = [word.strip(" .") for word in shown.text.split("<image>")[1:-1]]
            assert {_rule(word) for word in words} == {question.extra["rule"]}


def _rule(word: str) -> str:
    colours, shapes = {"red", "blue", "green", "yellow"}, {"circle", "square", "triangle"}
    return "colour" if word in colours else "shape" if word in shapes else "count"


def test_limits_and_groups(corpus: str) -> None:
    suite = suite_of(corpus, "vqa+text+general", limit=2)
    assert len(suite.questions) == 2 * (5 + 2)  # each dataset once
    assert set(suite.groups) == {"sft_general", "sft_text"}


def test_names_that_are_no_suites_are_refused_with_the_nearest() -> None:
    for name in [*MADE_SUITES, *PUBLISHED_SUITES, "vqa+text"]:
        check_suite(name)
    with pytest.raises(ConfigError, match="did you mean vqav2"):
        check_suite("VQA-v2")
    with pytest.raises(ConfigError, match="'xyzzy' is not one that can be asked; there are captions, vqa"):
        check_suite("xyzzy")
    with pytest.raises(ConfigError, match="docvqa is a published benchmark.*ask it alone"):
        check_suite("vqa+docvqa")


def test_shuffled_images_leave_what_is_known_blindly_and_all_of_the_text(corpus: str) -> None:
    """A reader who knows every image's answer by heart, and every text's: with its own image it is always right."""
    suite = suite_of(corpus, "vqa+text")
    by_heart = {_seen(question): question.answer for question in suite.questions}
    shuffled = shuffled_images(suite.questions, seed=0)
    assert _share_right(by_heart, suite.questions) == {True: 1.0, False: 1.0}
    right = _share_right(by_heart, shuffled)
    assert right[False] == 1.0
    pictured = [question for question in suite.questions if question.images]
    blind = sum(suite.baselines[question.category].blind for question in pictured) / len(pictured)
    assert right[True] < 0.6
    assert p_at_least(round(right[True] * len(pictured)), len(pictured), blind) > 0.01
    assert all(own.images != other.images for own, other in zip(suite.questions, shuffled, strict=True) if own.images)
    assert [question.images for question in shuffled_images(suite.questions, seed=0)] == [question.images for question in shuffled]


def pictured(number: int, images: str, category: str = "colour") -> Question:
    """A letter is an image."""
    return Question(
        id=f"{category}/{number}", category=category, metric="exact", form="chat", turns=(), answer="", gold={},
        images=tuple(InMemory(image.encode()) for image in images),
    )  # fmt: skip


def shown(question: Question) -> str:
    return "".join(image.read().decode() for image in question.images)


@pytest.mark.parametrize("images", ["aaabbc", "abcdeffff", "aab", "aaaab", "abababab"])
def test_no_question_keeps_its_image_where_several_are_about_one(images: str) -> None:
    questions = [pictured(number, image) for number, image in enumerate(images)]
    for seed in range(20):
        shuffled = shuffled_images(questions, seed=seed)
        assert all(own.images != other.images for own, other in zip(questions, shuffled, strict=True))
        if max(map(images.count, images)) <= len(images) / 2:  # they go round
            assert sorted(other.images[0].read() for other in shuffled) == sorted(own.images[0].read() for own in questions)


def test_where_a_category_has_one_image_it_gets_another_categorys() -> None:
    questions = [pictured(number, "a") for number in range(3)] + [pictured(0, "a", "count"), pictured(1, "b", "count")]
    shuffled = shuffled_images(questions, seed=0)
    assert [each.images[0].read() for each in shuffled] == [b"b", b"b", b"b", b"b", b"a"]
    alone = [pictured(0, "a")]
    assert shuffled_images(alone, seed=0) == alone


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("abcd", "ef"), ("eeff", "ac")),  # each has as many as nobody else: spread over fewer, and over more
        (("abc", "abc", "de"), ("dde", "dde", "ab")),  # all questions about one video have as many
        (("a", "ab", "cd"), ("c", "cd", "ab")),  # the first of (a, b) would be its own
        (("ab", "ac"), ("ac", "ab")),  # whole sets are compared
        (("ab", "ab"), ("ab", "ab")),  # there is nothing else in the suite
        (("a", "", "b"), ("b", "", "a")),
    ],
)
def test_images_of_which_nobody_else_shows_as_many_are_changed_too(asked: tuple[str, ...], expected: tuple[str, ...]) -> None:
    questions = [pictured(number, images) for number, images in enumerate(asked)]
    for seed in range(5):
        assert tuple(shown(question) for question in shuffled_images(questions, seed=seed)) == expected


def test_other_images_are_of_the_same_category_where_it_has_any() -> None:
    questions = [pictured(0, "abc"), pictured(1, "d"), pictured(0, "ef", "count"), pictured(1, "ef", "count")]
    assert [shown(question) for question in shuffled_images(questions, seed=0)] == ["ddd", "a", "ab", "dd"]


def test_whoever_waits_hears_of_each_look_at_images() -> None:
    beats: list[int] = []
    shuffled_images([pictured(0, "ab"), pictured(1, ""), pictured(2, "c")], seed=0, beat=lambda: beats.append(1))
    assert len(beats) == 2


def _seen(question: Question) -> str:
    return f"{question.category} {question.images[0].read().hex() if question.images else question.text}"


def _share_right(by_heart: dict[str, str], questions: object) -> dict[bool, float]:
    found: dict[bool, list[float]] = {True: [], False: []}
    for question in questions:  # type: ignore[attr-defined]
        found[bool(question.images)].append(score(question.metric, by_heart[_seen(question)], question.gold))
    return {with_image: sum(each) / len(each) for with_image, each in found.items()}


def test_a_single_reference_is_enough_for_cider() -> None:
    answers = [
        Answer(id=str(n), category="c", metric="exact", shots=0, shots_shown=0, question="", gold={"value": text}, answer=text, score=1.0)
        for n, text in enumerate(("a red circle", "a blue square on grass"))
    ]
    assert all(value > 1 for value in values_of("cider", answers))
