"""The ten published formats: small files with the benchmarks' own fields, parquet as on the hub and the benchmarks' own downloads."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagecoach.contract.evaluation import PUBLISHED_SUITES
from stagecoach.errors import DataError
from stagecoach.storage import open_store
from stagecoach_workloads.evaluation.gold import answer_of, gold_of
from stagecoach_workloads.evaluation.metrics import is_single, score
from stagecoach_workloads.evaluation.published.folder import is_training
from stagecoach_workloads.evaluation.published.formats import READERS, published_suite
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite


def picture(width: int = 8, height: int = 6, colour: str = "red") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(held, "PNG")
    return held.getvalue()


def on_hub(body: bytes | None, path: str = "x.png") -> dict[str, Any] | None:
    """An image as parquet files of the hub hold it."""
    return None if body is None else {"bytes": body, "path": path}


def write_parquet(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=2)


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def write_image(folder: Path, name: str, *, width: int = 8, height: int = 6) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(picture(width, height))


def write_video(path: Path, frames: int = 4) -> None:
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 32, 32
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(folder: Path, name: str, **settings: Any) -> Suite:
    return published_suite(name, open_store(f"file://{folder}"), seed=0, limit=settings.pop("limit", None))


def words(question: Question) -> str:
    return "".join(part for turn in question.turns for part in turn.content if isinstance(part, str))


def coco_hub(folder: Path) -> None:
    rows = [
        {"question_id": f"COCO_val2014_00000000000{n}.jpg", "image": on_hub(picture()), "answer": [f"Dog {n}.", "a cat"]} for n in range(3)
    ]
    write_parquet(folder, "val.parquet", rows)


def coco_own(folder: Path) -> None:
    annotations = [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "a cat"}]
    write_json(folder, "annotations/captions_val2014.json", {"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
                                                             "annotations": annotations})  # fmt: skip
    write_image(folder, "val2014/1.jpg")


def textcaps_hub(folder: Path) -> None:
    write_parquet(folder, "val.parquet", [{"image_id": "ab", "image": on_hub(picture()), "caption_str": ["A dog.", "a cat"]}])


def textcaps_own(folder: Path) -> None:
    row = {"image_id": "ab", "caption_str": "A dog.", "reference_strs": ["A dog.", "a cat"]}
    write_json(folder, "TextCaps_0.1_val.json", {"data": [row, row]})
    write_image(folder, "images/ab.jpg")


def vqa_hub(folder: Path) -> None:
    answers = [{"answer": "Yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    write_parquet(folder, "val.parquet", [{"question_id": 7, "image": on_hub(picture()), "question": "Is it?", "answers": answers}])


def vqa_own(folder: Path) -> None:
    write_json(
        folder, "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [{"question_id": 7, "image_id": 42, "question": "Is it?"}]}
    )
    answers = [{"answer": "Yes", "answer_id": n} for n in range(10)]
    write_json(folder, "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 7, "answers": answers}]})
    write_image(folder, "val2014/COCO_val2014_000000000042.jpg")


def textvqa_hub(folder: Path) -> None:
    row = {"question_id": 1, "image_id": "ab", "image": on_hub(picture()), "question": "is it?", "answers": ["yes"] * 10}
    write_parquet(folder, "validation.parquet", [row])


def textvqa_own(folder: Path) -> None:
    row = {"question_id": 1, "image_id": "ab", "question": "is it?", "answers": ["yes"] * 10}
    write_json(folder, "TextVQA_0.5.1_val.json", {"data": [row]})
    write_image(folder, "train_images/ab.jpg")


def docvqa_hub(folder: Path) -> None:
    row = {"questionId": "9", "question": "Is it?", "image": on_hub(picture()), "answers": ["Yes", "yes it is"]}
    write_parquet(folder, "val.parquet", [row])


def docvqa_own(folder: Path) -> None:
    write_json(
        folder, "val_v1.0.json", {"data": [{"questionId": 9, "question": "Is it?", "image": "documents/d_1.png", "answers": ["Yes"]}]}
    )
    write_image(folder, "documents/d_1.png")


def chartqa_hub(folder: Path) -> None:
    rows = [{"type": kind, "question": "Is it?", "answer": "12", "image": on_hub(picture())} for kind in ("human_test", "augmented_test")]
    write_parquet(folder, "test.parquet", rows)


def chartqa_own(folder: Path) -> None:
    write_json(folder, "test/test_human.json", [{"imgname": "1.png", "query": "Is it?", "label": "12"}])
    write_json(folder, "test/test_augmented.json", [{"imgname": "1.png", "query": "Is it?", "label": "12"}])
    write_image(folder, "test/png/1.png")


def refcoco_hub(folder: Path) -> None:
    row = {"question_id": "5", "image": on_hub(picture(100, 50)), "answer": ["left dog", "the dog"], "bbox": [10.0, 5.0, 20.0, 10.0]}
    write_parquet(folder, "testA.parquet", [row])


def scienceqa_hub(folder: Path) -> None:
    common = {"question": "Is it?", "choices": ["no", "yes"], "answer": 1, "hint": "Look."}
    write_parquet(folder, "test.parquet", [{**common, "image": on_hub(picture())}, {**common, "image": on_hub(None)}])


def scienceqa_own(folder: Path) -> None:
    common = {"question": "Is it?", "choices": ["no", "yes"], "answer": 1, "hint": "", "split": "test"}
    write_json(folder, "problems.json", {"3": {**common, "image": "image.png"}, "4": {**common, "image": None},
                                         "5": {**common, "image": None, "split": "train"}})  # fmt: skip
    write_image(folder, "test/3/image.png")


def mmmu_hub(folder: Path) -> None:
    common = {"image_1": on_hub(picture()), "image_2": on_hub(picture(9)), "image_3": on_hub(None)}
    rows = [
        {"id": "validation_Art_Theory_1", "question": "Is <image 1> it?", "options": "['no', '<image 2>']", "answer": "B",
         "question_type": "multiple-choice", **common},
        {"id": "validation_Art_Theory_2", "question": "How many? <image 1>", "options": "[]", "answer": "12",
         "question_type": "open", **common},
    ]  # fmt: skip
    write_parquet(folder, "validation.parquet", rows)


def next_rows() -> list[dict[str, Any]]:
    return [{"video": "77", "question": "why is it", "answer": 2, "qid": 3, "type": "CW", **{f"a{n}": f"reason {n}" for n in range(5)}}]


def nextqa_hub(folder: Path) -> None:
    write_parquet(folder, "test.parquet", next_rows())
    write_video(folder / "77.mp4")


def nextqa_own(folder: Path) -> None:
    [row] = next_rows()
    (folder / "val.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    (folder / "videos/1164").mkdir(parents=True)
    write_video(folder / "videos/1164/77.mp4")
    write_json(folder, "map_vid_vidorID.json", {"77": "1164/77"})


CASES: list[tuple[str, Callable[[Path], None], int, str, set[str]]] = [
    ("coco_captions", coco_hub, 3, "cider", {"coco_captions"}),
    ("coco_captions", coco_own, 1, "cider", {"coco_captions"}),
    ("textcaps", textcaps_hub, 1, "cider", {"textcaps"}),
    ("textcaps", textcaps_own, 1, "cider", {"textcaps"}),
    ("vqav2", vqa_hub, 1, "vqa_accuracy", {"vqav2"}),
    ("vqav2", vqa_own, 1, "vqa_accuracy", {"vqav2"}),
    ("textvqa", textvqa_hub, 1, "textvqa_accuracy", {"textvqa"}),
    ("textvqa", textvqa_own, 1, "textvqa_accuracy", {"textvqa"}),
    ("docvqa", docvqa_hub, 1, "anls", {"docvqa"}),
    ("docvqa", docvqa_own, 1, "anls", {"docvqa"}),
    ("chartqa", chartqa_hub, 2, "relaxed", {"chartqa_human", "chartqa_augmented"}),
    ("chartqa", chartqa_own, 2, "relaxed", {"chartqa_human", "chartqa_augmented"}),
    ("refcoco", refcoco_hub, 2, "iou_50", {"refcoco"}),
    ("scienceqa", scienceqa_hub, 2, "choice", {"scienceqa_image", "scienceqa_text"}),
    ("scienceqa", scienceqa_own, 2, "choice", {"scienceqa_image", "scienceqa_text"}),
    ("mmmu", mmmu_hub, 2, "choice", {"mmmu_art_theory", "mmmu_art_theory_open"}),
    ("nextqa", nextqa_hub, 1, "choice", {"nextqa_causal"}),
    ("nextqa", nextqa_own, 1, "choice", {"nextqa_causal"}),
]


@pytest.mark.parametrize(("name", "write", "number", "metric", "categories"), CASES)
def test_files_become_questions(
    name: str, write: Callable[[Path], None], number: int, metric: str, categories: set[str], tmp_path: Path
) -> None:
    write(tmp_path)
    suite = read(tmp_path, name)
    assert len(suite.questions) == number
    assert {question.category for question in suite.questions} == categories
    assert suite.questions[0].metric == metric
    for question in suite.questions:
        assert all(Image.open(io.BytesIO(each.read())).size[0] > 0 for each in question.images)
        assert words(question).strip() or question.form == "caption"
        if is_single(question.metric):
            assert score(question.metric, answer_of(question), gold_of(question)) == 1


def test_all_ten_are_covered() -> None:
    assert {name for name, *_ in CASES} == set(PUBLISHED_SUITES) == set(READERS)


def test_what_each_says(tmp_path: Path) -> None:
    folders = {write.__name__: tmp_path / write.__name__ for _, write, *_ in CASES}
    for _, write, *_ in CASES:
        folders[write.__name__].mkdir()
        write(folders[write.__name__])
    [science, text_only] = read(folders["scienceqa_hub"], "scienceqa").questions
    assert words(science) == "Context: Look.\nIs it?\nA. no\nB. yes"
    assert (len(science.images), len(text_only.images)) == (1, 0)
    [mmmu, opened] = read(folders["mmmu_hub"], "mmmu").questions
    assert mmmu.turns[0].content == ("Is ", {"image": 0}, " it?\nA. no\nB. ", {"image": 1})
    assert opened.gold == {"answers": ["12"]}
    [left, _] = read(folders["refcoco_hub"], "refcoco").questions
    assert words(left) == "What is the location of left dog in the image?"
    assert gold_of(left) == {"value": [100, 100, 300, 300]}
    [next_question] = read(folders["nextqa_hub"], "nextqa").questions
    assert words(next_question).startswith("why is it?\nA. reason 0\nB. reason 1")
    assert (len(next_question.images), next_question.is_video, next_question.answer) == (4, True, "C")
    [coco] = read(folders["coco_own"], "coco_captions").questions
    assert coco.gold == {"answers": ["A dog.", "a cat"]}


def test_shots_come_from_training_files_where_there_are_any(tmp_path: Path) -> None:
    vqa_hub(tmp_path)
    answers = [{"answer": "no"}] * 10
    rows = [{"question_id": n, "image": on_hub(picture()), "question": f"Train {n}?", "answers": answers} for n in range(5)]
    write_parquet(tmp_path, "train-00000.parquet", rows)
    suite = read(tmp_path, "vqav2")
    question, shots = suite.ask(suite.questions[0], 4)
    assert question.id == "vqav2/7"
    assert len({shot.id for shot in shots}) == 4
    assert all(words(shot).startswith("Train") and shot.answer == "no" for shot in shots)


def test_without_training_files_the_query_is_never_its_own_shot(tmp_path: Path) -> None:
    coco_hub(tmp_path)
    suite = read(tmp_path, "coco_captions")
    for question in suite.questions:
        assert question.id not in {shot.id for shot in suite.ask(question, 8)[1]}
        assert len(suite.ask(question, 8)[1]) == 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file with rows"):
        read(tmp_path, "vqav2")
    write_json(tmp_path, "rows.json", [{"question": "?"}])
    with pytest.raises(DataError, match=r"rows.json: row 0 has no field image, answers \(it has question\)"):
        read(tmp_path, "vqav2")
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(DataError, match=r"rows.json: cannot be read"):
        read(tmp_path, "vqav2")
    write_json(tmp_path, "rows.json", [{"question": "?", "image": "gone.png", "answers": ["x"]}])
    with pytest.raises(DataError, match=r"the image gone.png is not there"):
        read(tmp_path, "docvqa")
    write_json(tmp_path, "rows.json", [{"question": "?", "image": "gone.png", "answers": None}])
    with pytest.raises(DataError, match="no row of docvqa with an answer"):
        read(tmp_path, "docvqa")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(DataError, match=r"bad.parquet: not a parquet file"):
        read(tmp_path, "docvqa")


def test_a_value_of_another_kind_is_bad_data_and_no_crash(tmp_path: Path) -> None:
    """A crash would be tried again three times, with the same end."""
    science = {"question": "Is it?", "choices": ["no", "yes"], "answer": 1, "hint": ""}
    (tmp_path / "s").mkdir()
    write_json(tmp_path / "s", "rows.json", [science, {**science, "answer": "yes"}])
    with pytest.raises(DataError, match=r"what follows the first 1 questions is not as scienceqa has it \(ValueError: .*'yes'"):
        read(tmp_path / "s", "scienceqa")
    (tmp_path / "v").mkdir()
    write_json(tmp_path / "v", "v2_questions.json", {"questions": []})
    write_json(tmp_path / "v", "v2_annotations.json", {"rows": []})
    with pytest.raises(DataError, match=r"not as vqav2 has it \(KeyError: 'annotations'"):
        read(tmp_path / "v", "vqav2")
    row = {"question_id": "5", "image": on_hub(picture()), "answer": ["left"], "bbox": [10.0]}
    (tmp_path / "r").mkdir()
    write_parquet(tmp_path / "r", "val.parquet", [row])
    with pytest.raises(DataError, match="not as refcoco has it"):
        read(tmp_path / "r", "refcoco")


SCIENCE = {"question": "Is it?", "choices": ["no", "yes"], "answer": 1, "hint": ""}


def widths(suite: Suite) -> list[int]:
    return [Image.open(io.BytesIO(image.read())).width for question in suite.questions for image in question.images]


@pytest.mark.parametrize("folder", ["", "test/"])
def test_each_question_of_scienceqa_shows_its_own_image_though_all_are_called_alike(folder: str, tmp_path: Path) -> None:
    numbers = (3, 5, 13)
    write_json(tmp_path, "problems.json", {str(number): {**SCIENCE, "image": "image.png", "split": "test"} for number in numbers})
    for number in (*numbers, 7):
        write_image(tmp_path, f"{folder}{number}/image.png", width=number)
    assert widths(read(tmp_path, "scienceqa")) == list(numbers)
    for number in numbers:
        (tmp_path / f"{folder}{number}/image.png").unlink()
    with pytest.raises(DataError, match=r"the image 3/image.png is not there"):  # and question 7's, now the only one, is not shown for it
        read(tmp_path, "scienceqa")


def test_an_image_is_found_where_its_name_tells_which_it_is(tmp_path: Path) -> None:
    write_json(tmp_path, "rows.json", [{"questionId": 9, "question": "Is it?", "image": "documents/d_1.png", "answers": ["Yes"]}])
    write_image(tmp_path, "pages/d_1.png", width=1)
    assert widths(read(tmp_path, "docvqa")) == [1]  # elsewhere than the row says
    write_image(tmp_path, "thumbnails/d_1.png", width=2)
    with pytest.raises(DataError, match=r"documents/d_1.png may be any of 2 files: pages/d_1.png, thumbnails/d_1.png; take the others out"):
        read(tmp_path, "docvqa")
    write_image(tmp_path, "all/documents/d_1.png", width=3)
    assert widths(read(tmp_path, "docvqa")) == [3]
    write_image(tmp_path, "documents/d_1.png", width=4)
    assert widths(read(tmp_path, "docvqa")) == [4]


TRAINING = {
    "train/data.json": True,
    "default/train/0000.parquet": True,
    "train2014/rows.json": True,
    "Training/rows.json": True,
    "test/train_rows.json": True,
    "miniTrain.json": True,
    "train/values.json": True,
    "default/test/0000.parquet": False,
    "constrained/rows.json": False,
    "annotations_trainval2014/annotations/captions_val2014.json": False,
    "annotations_trainval2014/annotations/captions_train2014.json": True,
    "rows.json": False,
}


@pytest.mark.parametrize(("key", "expected"), TRAINING.items())
def test_a_training_file_is_told_by_its_path(key: str, expected: bool) -> None:
    assert is_training(key) == expected


def test_files_in_a_training_folder_are_shots_and_never_asked(tmp_path: Path) -> None:
    row = {"question": "Is it?", "image": "1.png", "answers": ["Yes"]}
    write_json(tmp_path, "docs/train/0000.json", [{**row, "questionId": number, "question": f"Train {number}?"} for number in (1, 2, 3)])
    write_json(tmp_path, "docs/test/0000.json", [{**row, "questionId": 9}])
    write_image(tmp_path, "1.png")
    suite = read(tmp_path, "docvqa")
    assert [question.id for question in suite.questions] == ["docvqa/9"]
    assert {shot.id for shot in suite.ask(suite.questions[0], 3)[1]} == {"docvqa/1", "docvqa/2", "docvqa/3"}


def test_problems_of_all_splits_lie_in_one_file_wherever_that_is(tmp_path: Path) -> None:
    splits = {"3": "test", "4": "val", "5": "train"}
    problems = {number: {**SCIENCE, "question": f"Is it {number}?", "image": None, "split": split} for number, split in splits.items()}
    write_json(tmp_path, "train_and_test/problems.json", problems)
    suite = read(tmp_path, "scienceqa")
    assert [question.id for question in suite.questions] == ["scienceqa/3"]
    assert [shot.id for shot in suite.ask(suite.questions[0], 1)[1]] == ["scienceqa/5"]


def test_what_official_downloads_have_beside_their_rows_is_not_read(tmp_path: Path) -> None:
    chart = tmp_path / "chartqa"
    chartqa_own(chart)
    write_json(chart, "test/annotations/1.json", {"models": [{"name": "a"}], "type": "v_bar"})
    write_json(chart, "train/annotations/2.json", {"models": [], "type": "pie"})
    write_json(chart, "train/train_human.json", [{"imgname": "1.png", "query": "Train?", "label": "12"}])
    suite = read(chart, "chartqa")
    assert {question.category for question in suite.questions} == {"chartqa_human", "chartqa_augmented"}
    assert [words(shot) for shot in suite.ask(suite.questions[0], 1)[1]] == ["Train?"]
    science = tmp_path / "scienceqa"
    scienceqa_own(science)
    write_json(science, "pid_splits.json", {"train": ["5"], "test": ["3", "4"]})
    assert len(read(science, "scienceqa").questions) == 2


def test_files_of_something_else_are_to_be_taken_out(tmp_path: Path) -> None:
    docvqa_own(tmp_path)
    for other in ({"train": ["5"]}, [{"page": 1}]):
        write_json(tmp_path, "other.json", other)
        with pytest.raises(DataError, match=r"other.json: .*; take files that are not this benchmark's out of the folder"):
            read(tmp_path, "docvqa")


BLANK: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("textvqa", {"question_id": 1, "image_id": "ab", "question": "is it?"}, {"answers": [""] * 10}),
    ("vqav2", {"question_id": 1, "question": "Is it?"}, {"answers": [{"answer": " "}] * 10}),
    ("docvqa", {"questionId": 1, "question": "Is it?"}, {"answers": ["", None]}),
    ("chartqa", {"type": "human", "question": "Is it?"}, {"answer": ""}),
    ("chartqa", {"type": "human", "question": "Is it?"}, {"answer": []}),
    ("coco_captions", {"question_id": "1"}, {"answer": ["", "\n"]}),
    ("textcaps", {"image_id": "ab"}, {"caption_str": [""] * 5, "reference_strs": None}),
]


@pytest.mark.parametrize(("name", "row", "blank"), BLANK)
def test_a_row_whose_answers_are_all_blank_has_none(name: str, row: dict[str, Any], blank: dict[str, Any], tmp_path: Path) -> None:
    write_image(tmp_path, "ab.jpg")
    write_json(tmp_path, "test.json", [{**row, **blank, "image": "ab.jpg"}])
    with pytest.raises(DataError, match=f"no row of {name} with an answer"):
        read(tmp_path, name)


def test_who_said_nothing_is_one_of_the_ten_as_in_the_official_script(tmp_path: Path) -> None:
    write_image(tmp_path, "ab.jpg")
    write_json(tmp_path, "val.json", [{"question_id": 1, "image_id": "ab", "question": "is it?", "answers": [*[""] * 7, *["yes"] * 3]}])
    [question] = read(tmp_path, "textvqa").questions
    assert question.answer == "yes"
    assert score(question.metric, "yes", gold_of(question)) == pytest.approx(0.9)
