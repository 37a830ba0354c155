"""Published benchmarks: which shots are shown, which categories there are, and what a box in pixels is of."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from stagecoach.storage import open_store
from stagecoach_workloads.data.samples import Turn
from stagecoach_workloads.evaluation.gold import answer_of, gold_of
from stagecoach_workloads.evaluation.published.formats import published_suite
from stagecoach_workloads.evaluation.published.shots import ShotPool
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite, draw, shuffled_images


def read(folder: Path, name: str, rows: dict[str, list[dict[str, Any]]], *, limit: int | None = None) -> Suite:
    """The benchmark of these files' rows."""
    for file, each in rows.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(each))
    return published_suite(name, open_store(f"file://{folder}"), seed=0, limit=limit)


def science(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"s{number}", "question": f"Is it {number}?", "choices": ["no", "yes"], "answer": 1, "hint": "", **changes}


def boxed(folder: Path, number: int, width: int, height: int) -> dict[str, Any]:
    body = io.BytesIO()
    Image.new("RGB", (width, height)).save(body, "PNG")
    (folder / f"{number}.png").write_bytes(body.getvalue())
    return {"question_id": f"r{number}", "image": f"{number}.png", "answer": ["the dog"], "bbox": [10.0 + number, 20.0, 30.0, 20.0]}


def shots_of(suite: Suite, number: int) -> list[set[str]]:
    """The shots' texts, by question."""
    return [{shot.text for shot in suite.ask(question, number)[1]} for question in suite.questions]


def test_a_question_is_no_shot_of_itself_though_the_training_split_holds_it_too(tmp_path: Path) -> None:
    rows = [science(number) for number in range(5)]
    under_other_ids = [science(number, id=f"t{number}") for number in range(5)]
    for name, training in (("ids", [{**row, "hint": "Look."} for row in rows]), ("texts", under_other_ids)):
        suite = read(tmp_path / name, "scienceqa", {"test.json": rows, "train.json": training})
        for question in suite.questions:
            shots = suite.ask(question, 8)[1]
            assert len(shots) == 4
            assert question.id not in {shot.id for shot in shots}
            assert question.text not in {shot.text for shot in shots}


def test_a_question_that_is_there_twice_is_asked_twice_and_is_no_shot_of_the_other(tmp_path: Path) -> None:
    rows = [science(number % 3, id=f"s{number}") for number in range(6)]
    suite = read(tmp_path, "scienceqa", {"test.json": rows})
    assert len(suite.questions) == 6
    for question, shots in zip(suite.questions, shots_of(suite, 8), strict=True):
        assert question.text not in shots
        assert len(shots) == 2


def test_a_question_with_another_answer_may_be_a_shot(tmp_path: Path) -> None:
    suite = read(tmp_path, "scienceqa", {"test.json": [science(1)], "train.json": [science(1, id="t", answer=0)]})
    assert shots_of(suite, 1) == [{suite.questions[0].text}]


def test_shots_may_be_questions_that_a_limit_leaves_unasked(tmp_path: Path) -> None:
    suite = read(tmp_path, "scienceqa", {"test.json": [science(number) for number in range(9)]}, limit=1)
    assert len(suite.questions) == 1
    assert len(shots_of(suite, 4)[0]) == 4


def test_each_of_several_evaluation_splits_is_a_category_of_its_own(tmp_path: Path) -> None:
    train = [boxed(tmp_path, number, 100, 50) for number in (8, 9)]
    splits = {f"data/{name}-00000.json": [boxed(tmp_path, number, 100, 50)] for number, name in enumerate(("val", "testA", "testB"))}
    suite = read(tmp_path, "refcoco", {**splits, "data/train-00000.json": train}, limit=1)
    categories = ["refcoco_testa", "refcoco_testb", "refcoco_val"]
    assert [question.category for question in suite.questions] == categories
    assert suite.groups == {name: (name,) for name in categories}
    assert suite.splits_apart
    assert [len(suite.ask(question, 2)[1]) for question in suite.questions] == [2, 2, 2]


def test_a_split_without_a_name_is_the_benchmarks_own_group(tmp_path: Path) -> None:
    rows = [boxed(tmp_path, 0, 8, 8)]
    suite = read(tmp_path, "refcoco", {"testA.json": rows, "rows.json": rows})
    assert suite.groups == {"refcoco": ("refcoco",), "refcoco_testa": ("refcoco_testa",)}
    (tmp_path / "testA.json").unlink()
    suite = read(tmp_path, "refcoco", {})
    assert (suite.groups, suite.splits_apart) == ({"refcoco": ("refcoco",)}, False)


def test_one_id_in_two_splits_is_two_and_shots_are_those_of_the_question_as_it_was_read(tmp_path: Path) -> None:
    rows = [science(number) for number in range(4)]
    train = [science(number, hint="Look.") for number in range(40)]  # the same ids, but not the same texts
    alone = read(tmp_path / "alone", "scienceqa", {"test.json": rows, "train.json": train})
    apart = read(tmp_path / "apart", "scienceqa", {"test.json": rows, "val.json": rows, "train.json": train})
    assert [question.id for question in alone.questions] == [f"scienceqa/s{number}" for number in range(4)]
    assert len({question.id for question in apart.questions}) == 8
    for place, question in enumerate(apart.questions):
        shots = apart.ask(question, 39)[1]
        assert f"scienceqa/s{place % 4}" not in {shot.id for shot in shots}
        assert [shot.id for shot in shots] == [shot.id for shot in alone.ask(alone.questions[place % 4], 39)[1]]


def test_the_examples_of_mmmu_are_shots_and_never_asked(tmp_path: Path) -> None:
    common = {"question": "Is it?", "options": "['no', 'yes']", "answer": "B", "question_type": "multiple-choice"}
    files = {f"Art/{split}-00000-of-00001.json": [{**common, "id": f"{split}_Art_1", "question": f"In {split}?"}]
             for split in ("dev", "validation")}  # fmt: skip
    suite = read(tmp_path, "mmmu", files)
    assert [question.id for question in suite.questions] == ["mmmu/validation_Art_1"]
    assert (suite.groups, suite.splits_apart) == ({"mmmu": ("mmmu_art",)}, False)
    assert [shot.id for shot in suite.ask(suite.questions[0], 4)[1]] == ["mmmu/dev_Art_1"]


def plainly_drawn(pool: Sequence[Question], seed: int, question: Question, number: int) -> list[Question]:
    """From a list of all that may be shown."""
    allowed = [
        each for each in pool if each.id != question.id and (each.text, repr(each.gold)) != (question.text, repr(question.gold))
    ]  # fmt: skip
    same = [each for each in allowed if each.category == question.category] or allowed
    return [same[place] for place in draw(seed, question, len(same), number)]


def test_shots_are_the_same_as_those_drawn_from_a_list_of_all_that_may_be_shown() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        size = rng.choice((1, 2, 3, 8, 40))
        pool = [
            Question(
                id=f"q{rng.randrange(size)}", category=rng.choice("aab"), metric="exact", form="chat", answer="",
                turns=(Turn("user", (f"Is it {rng.randrange(1 + size // 2)}?",)),), gold={"value": rng.randrange(2)},
            )
            for _ in range(size)
        ]  # fmt: skip
        asked = [*pool, replace(pool[0], id="another", category="c"), replace(pool[0], id="another", gold={})]
        for question in asked:
            for number in (1, 4, 20):
                assert ShotPool(pool).draw(seed, question, number) == plainly_drawn(pool, seed, question, number)


def test_a_split_without_answers_is_none_and_shots_are_of_the_questions_own_category(tmp_path: Path) -> None:
    image = {"image": "0.png"}
    boxed(tmp_path, 0, 8, 8)
    human = [{**image, "type": "human", "question": f"Q{number}?", "answer": "1"} for number in range(3)]
    machine = [{**image, "type": "augmented", "question": f"M{number}?", "answer": "1"} for number in range(3)]
    files = {"val.json": human + machine, "test.json": [{**row, "answer": ""} for row in human]}
    suite = read(tmp_path, "chartqa", files)
    assert {question.category for question in suite.questions} == {"chartqa_human", "chartqa_augmented"}
    suite = read(tmp_path, "chartqa", {"test.json": [{**human[0], "question": "Q9?"}]})
    assert [question.category for question in suite.questions][:2] == ["chartqa_human_test", "chartqa_human_val"]
    for question, shots in zip(suite.questions, shots_of(suite, 2), strict=True):
        assert len(shots) == 2
        assert all(shot.startswith("<image>Q") == question.text.startswith("<image>Q") for shot in shots)


def test_a_box_is_told_on_the_canvas_of_its_own_image(tmp_path: Path) -> None:
    rows = [boxed(tmp_path, 0, 100, 100), boxed(tmp_path, 1, 400, 200)]
    suite = read(tmp_path, "refcoco", {"val.json": rows})
    wanted = ["[100, 200, 400, 400]", "[28, 100, 102, 200]"]
    assert [answer_of(question) for question in suite.questions] == wanted
    shuffled = shuffled_images(suite.questions, seed=0)
    assert [question.images for question in shuffled] == [question.images for question in reversed(suite.questions)]
    assert [str([round(side) for side in gold_of(question)["value"]]) for question in shuffled] == wanted
