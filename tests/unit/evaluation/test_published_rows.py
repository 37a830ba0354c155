"""Rows of published benchmarks as other tools write them: what is read all the same, and how the rest is refused."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagecoach.errors import DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.data.samples import SampleError
from stagecoach_workloads.evaluation.published.formats import check_first_question, published_suite
from stagecoach_workloads.evaluation.published.rows import InParquet, InStore, rows_of
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite, shuffled_images

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


def test_an_image_that_lies_under_several_names_is_one_image(tmp_path: Path) -> None:
    problem = {"question": "Is it?", "choices": ["no", "yes"], "answer": 0, "hint": "", "split": "test", "image": "image.png"}
    (tmp_path / "problems.json").write_text(json.dumps({str(number): problem for number in range(9)}))
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        (tmp_path / f"{number}/image.png").write_bytes(picture(1 + number // 3))
    questions = read(tmp_path, "scienceqa")
    for seed in range(5):
        for own, other in zip(questions, shuffled_images(questions, seed=seed), strict=True):
            assert own.images[0].read() != other.images[0].read()
    gone = InStore(open_store(f"file://{tmp_path}"), "9/image.png")
    assert gone.identity == gone


def images_in(folder: Path, bodies: list[bytes], *, group: int = 2, **options: Any) -> list[InParquet]:
    """Of a parquet file with these images, `group` to a row group."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": body, "path": f"{number}.png"} for number, body in enumerate(bodies)], struct)
    table = pa.table({"number": list(range(len(bodies))), "image": image, "after": ["x"] * len(bodies)})
    pq.write_table(table.replace_schema_metadata(options.pop("metadata", None)), folder / "test.parquet", row_group_size=group, **options)
    store = open_store(f"file://{folder}")
    return [row["image"] for _, row in rows_of(store, "test.parquet")]


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False, "compression": "none"}, {"metadata": {"long": "x" * 200_000}}, {"data_page_version": "2.0"}]
)
def test_an_image_in_parquet_costs_its_row_group_and_not_the_file(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [random.Random(number).randbytes(50_000) for number in range(40)]
    afresh = open_store(f"file://{tmp_path}")  # nothing of it was read yet
    images = [replace(image, store=afresh) for image in images_in(tmp_path, bodies, **options)]
    read_bytes: list[int] = []
    read_into, read_ranges = Store.read_into, Store.read_ranges

    def into(store: Store, key: str, start: int, buffers: Any) -> None:
        read_bytes.append(sum(len(buffer) for buffer in buffers))
        read_into(store, key, start, buffers)

    def ranges(store: Store, key: str, wanted: Any, **named: Any) -> Any:
        read_bytes.extend(length for _, length in wanted)
        return read_ranges(store, key, wanted, **named)

    monkeypatch.setattr(Store, "read", lambda store, key: pytest.fail(f"all of {key} was read"))
    monkeypatch.setattr(Store, "read_into", into)
    monkeypatch.setattr(Store, "read_ranges", ranges)
    assert images[33].read() == bodies[33]
    assert sum(read_bytes) < 700_000
    read_bytes.clear()
    for number in (*range(0, 40, 3), *range(0, 40, 3)):
        assert images[number].read() == bodies[number]
    assert sum(read_bytes) < 14 * 110_000  # none is read twice, though they are of more row groups than are kept


def test_a_damaged_image_in_parquet_is_its_questions_trouble(tmp_path: Path) -> None:
    bodies = [random.Random(number).randbytes(5000) for number in range(4)]
    images_in(tmp_path, bodies, use_dictionary=False, compression="snappy")
    body = bytearray((tmp_path / "test.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "test.parquet").metadata.row_group(1).column(1)
    assert column.path_in_schema == "image.bytes"
    first = column.data_page_offset
    for damage in (bytes(200), b"\xff" * 200):
        (tmp_path / "test.parquet").write_bytes(body[:first] + damage + body[first + 200 :])
        store = open_store(f"file://{tmp_path}")
        images = [row["image"] for _, row in rows_of(store, "test.parquet")]
        assert images[1].read() == bodies[1]
        with pytest.raises(SampleError, match=r"test\.parquet: row 2: column image cannot be read: ."):
            images[2].read()
        assert images[2].identity == images[2]
    (tmp_path / "test.parquet").write_bytes(body[: first + 100])
    cut = InParquet(open_store(f"file://{tmp_path}"), "test.parquet", 0, "image")
    for image in (cut, images[3]):  # one whose file is looked at first, and one of a file that was cut since
        with pytest.raises(SampleError, match=rf"test\.parquet: row {image.row}: column image cannot be read"):
            image.read()


def test_whoever_waits_hears_of_each_row_and_each_file_that_is_read_whole(tmp_path: Path) -> None:
    beats: list[int] = []

    def suite_of(name: str, files: dict[str, Any]) -> Suite:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "COCO_val2014_000000000001.jpg").write_bytes(picture())
        for file, value in files.items():
            (folder / file).write_text(json.dumps(value))
        beats.clear()
        return published_suite(name, open_store(f"file://{folder}"), seed=0, limit=None, beat=lambda: beats.append(1))

    row = {**CHART, "imgname": "COCO_val2014_000000000001.jpg"}
    suite = suite_of("chartqa", {"val.json": [row] * 5, "train.json": [row] * 3})
    assert len(beats) == 5
    suite.ask(suite.questions[0], 1)  # now the training rows are read
    assert len(beats) == 5 + 3
    asked = {"questions": [{"question_id": 1, "image_id": 1, "question": "Is it?"}]}
    answers = {"annotations": [{"question_id": 1, "answers": ["yes"]}]}
    suite_of("vqav2", {"val_questions.json": asked, "val_annotations.json": answers})
    assert len(beats) == 2


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
