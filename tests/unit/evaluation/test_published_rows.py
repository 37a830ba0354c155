"""Rows of published benchmarks as other tools write them: what is read all the same, and how the rest is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagecoach.errors import DataError
from stagecoach.storage import open_store
from stagecoach_workloads.evaluation.published.formats import check_first_question, published_suite
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import shuffled_images

NEXT = "video,question,answer,qid,type,a0,a1,a2,a3,a4\n"
CHART = {"imgname": "a.png", "query": "Is it?", "label": "1", "type": "human"}


def picture(width: int = 8) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, 6), "red").save(held, "PNG")
    return held.getvalue()


def read(folder: Path, name: str) -> list[Question]:
    return list(published_suite(name, open_store(f"file://{folder}"), seed=0, limit=None).questions)


def write_parquet(folder: Path, rows: list[dict[str, Any]], name: str = "test.parquet") -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=2)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_line_of_json_ends_where_the_line_does_and_nowhere_else(end: str, tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\u2029two", "one\x85two"]
    lines = [json.dumps({**CHART, "query": text}, ensure_ascii=False) + end for text in texts]
    (tmp_path / "test.jsonl").write_bytes("".join(lines).encode())
    (tmp_path / "a.png").write_bytes(picture())
    assert [question.text for question in read(tmp_path, "chartqa")] == [f"<image>{text}" for text in texts]


def test_csv_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    row = "1,why is it,0,3,CW,a,b,c,d,e\n"
    file = tmp_path / "val.csv"
    file.write_text(NEXT + row + '2,"why is it,0,3,CW,a,b,c,d,e\n' + row)
    (tmp_path / "1.mp4").write_bytes(b"looked at later")
    with pytest.raises(DataError, match=r"val\.csv: what begins in line 3 cannot be read: .*is a quote not closed there\?"):
        list(_rows(file))
    file.write_text(NEXT + row + "2,why, is it,0,3,CW,a,b,c,d,e\n")
    with pytest.raises(DataError, match=r"val\.csv: row 1, which begins in line 3, has 11 fields and the header 10; quote the fields"):
        list(_rows(file))


def test_a_long_field_of_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(NEXT + f'1,"{"why " * 50_000}",0,3,CW,a,b,c,d,e\n')
    assert [len(row["question"]) for row in _rows(tmp_path / "val.csv")] == [200_000]


def _rows(file: Path) -> list[dict[str, Any]]:
    from stagecoach_workloads.evaluation.published.rows import rows_of

    return [row for _, row in rows_of(open_store(f"file://{file.parent}"), file.name)]


@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
def test_half_a_surrogate_pair_is_refused_before_a_job_is_started(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / name).write_text(json.dumps({**CHART, "query": "is it \U0001f600?"}))
    if name == "test.json":
        (tmp_path / name).write_text(json.dumps([{**CHART, "query": "is it \U0001f600?"}]))
    assert read(tmp_path, "chartqa")[0].text == "<image>is it \U0001f600?"
    rows = [CHART, {**CHART, "query": "is it \ud83d?"}]
    (tmp_path / name).write_text(json.dumps(rows) if name == "test.json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 1: holds half of a surrogate pair, in .*is it \\ud83d\?"):
        check_first_question("chartqa", f"file://{tmp_path}")


def test_half_a_surrogate_pair_in_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path) -> None:
    captions = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a \ud83d dog"}]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    with pytest.raises(DataError, match=r"captions_val2014\.json: holds half of a surrogate pair, in .*a \\ud83d dog"):
        read(tmp_path, "coco_captions")


def test_answers_may_be_one_object_of_lists(tmp_path: Path) -> None:
    answers = {"answer": ["yes"] * 9 + ["no"], "answer_confidence": ["maybe"] * 10}
    write_parquet(tmp_path, [{"question_id": 1, "question": "Is it?", "image": {"bytes": picture(), "path": None}, "answers": answers}])
    [question] = read(tmp_path, "vqav2")
    assert question.gold == {"answers": answers["answer"]}
    assert question.answer == "yes"


def test_an_image_of_which_parquet_holds_the_path_alone_is_read_from_its_file(tmp_path: Path) -> None:
    for width in (1, 2, 3, 4):
        (tmp_path / f"im{width}.png").write_bytes(picture(width))
    held = [None, picture(5), None, None, picture(6)]  # of three row groups one has both, one none, one all
    rows = [
        {"questionId": str(number), "question": "Is it?", "answers": ["yes"], "image": {"bytes": body, "path": f"im{number}.png"}}
        for number, body in enumerate(held, 1)
    ]
    write_parquet(tmp_path, rows)
    widths = [Image.open(io.BytesIO(question.images[0].read())).width for question in read(tmp_path, "docvqa")]
    assert widths == [1, 5, 3, 4, 6]
    (tmp_path / "im3.png").unlink()
    with pytest.raises(DataError, match=r"the image im3\.png is not there"):
        read(tmp_path, "docvqa")


@pytest.mark.parametrize("image", ["im1.png", {"path": "im1.png"}])
def test_an_image_column_of_paths_names_files(image: Any, tmp_path: Path) -> None:
    (tmp_path / "im1.png").write_bytes(picture(1))
    write_parquet(tmp_path, [{"questionId": "1", "question": "Is it?", "answers": ["yes"], "image": image}])
    assert read(tmp_path, "docvqa")[0].images[0].read() == picture(1)


def test_a_row_with_neither_image_nor_path_is_refused(tmp_path: Path) -> None:
    rows = [{"questionId": str(number), "question": "?", "answers": ["yes"], "image": {"bytes": body, "path": None}}
            for number, body in enumerate((picture(), None))]  # fmt: skip
    write_parquet(tmp_path, rows)
    with pytest.raises(DataError, match="the image in column image is not there"):
        read(tmp_path, "docvqa")


def test_an_image_that_parquet_holds_with_each_question_about_it_is_one_image(tmp_path: Path) -> None:
    rows = [
        {"questionId": str(number), "question": "Is it?", "answers": ["yes"], "image": {"bytes": picture(1 + number // 3), "path": None}}
        for number in range(9)
    ]
    write_parquet(tmp_path, rows)
    questions = read(tmp_path, "docvqa")
    for own, other in zip(questions, shuffled_images(questions, seed=0), strict=True):
        assert own.images[0].read() != other.images[0].read()


def test_chartqa_may_tell_people_and_machines_by_number(tmp_path: Path) -> None:
    common = {"image": {"bytes": picture(), "path": None}, "query": "Is it?", "label": ["12"]}
    write_parquet(tmp_path, [{**common, "human_or_machine": number} for number in (0, 1, 0)], "test-00000-of-00001.parquet")
    assert [question.category for question in read(tmp_path, "chartqa")] == ["chartqa_human", "chartqa_augmented", "chartqa_human"]


def test_an_open_answer_that_only_begins_like_a_list_is_a_text(tmp_path: Path) -> None:
    said = {"[0,3)": ["[0,3)"], "['2.83', '17/6']": ["2.83", "17/6"], "12": ["12"], "[see text": ["[see text"]}
    rows = [
        {"id": f"validation_Math_{number}", "question": "How many?", "options": "[]", "answer": answer, "question_type": "open"}
        for number, answer in enumerate(said)
    ]
    write_parquet(tmp_path, rows)
    assert [question.gold["answers"] for question in read(tmp_path, "mmmu")] == list(said.values())
    write_parquet(tmp_path, [{**rows[0], "question_type": "multiple-choice", "options": "[no", "answer": "A"}])
    with pytest.raises(DataError, match=r"`options` is '\[no', not a list written as text"):
        read(tmp_path, "mmmu")
