"""Published benchmarks: which shots are shown, which categories there are, and what a box in pixels is of."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from stagecoach.storage import open_store
from stagecoach_workloads.evaluation.gold import answer_of, gold_of
from stagecoach_workloads.evaluation.published.formats import published_suite
from stagecoach_workloads.evaluation.suite import Suite, shuffled_images


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
    categories = ("refcoco_testa", "refcoco_testb", "refcoco_val")
    assert tuple(question.category for question in suite.questions) == suite.groups["refcoco"] == categories
    assert [len(suite.ask(question, 2)[1]) for question in suite.questions] == [2, 2, 2]


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
