"""Questions about one image with an open answer: VQAv2, TextVQA, DocVQA, ChartQA, RefCOCO."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from stagecoach_workloads.evaluation.published.folder import SHORT, Folder, asked, text_of, texts_of
from stagecoach_workloads.evaluation.question import Picture, Question


def vqav2(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows (`question_id`, `image`, `question`, `answers`: ten of `{"answer": ...}`), or the official pair of files
    `*_questions.json` (`questions`: `question_id`, `image_id`, `question`) and `*_annotations.json` (`annotations`: `question_id`,
    `answers`)."""
    if any(key.endswith("_questions.json") for key in folder.files):
        yield from _official_vqa(folder, train=train)
        return
    for where, row in folder.rows("question", "image", "answers", train=train):
        answers = texts_of(row["answers"])
        if answers:
            yield _open("vqav2", str(row.get("question_id") or where), folder.image(row), row["question"], answers, "vqa_accuracy")


def _official_vqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    keys = folder.keys(train=train)
    answers: dict[int, list[str]] = {}
    for key in (key for key in keys if key.endswith("_annotations.json")):
        answers |= {each["question_id"]: texts_of(each["answers"]) for each in folder.json(key)["annotations"]}
    for key in (key for key in keys if key.endswith("_questions.json")):
        for row in folder.json(key)["questions"]:
            number, image = row["question_id"], int(row["image_id"])
            if answers.get(number):
                names = [f"COCO_{split}_{image:012d}.jpg" for split in ("val2014", "train2014")]
                yield _open("vqav2", str(number), folder.image({}, *names), row["question"], answers[number], "vqa_accuracy")


def textvqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows, or TextVQA's own JSON (`data`), alike: `question_id`, `image_id`, `image`, `question`, `answers` (ten texts)."""
    for where, row in folder.rows("question", "image_id", train=train):
        answers = texts_of(row.get("answers"))
        if answers:
            picture = folder.image(row, f"{row['image_id']}.jpg")
            name = str(row.get("question_id") or where)
            yield _open("textvqa", name, picture, str(row["question"]).capitalize(), answers, "textvqa_accuracy")


def docvqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows, or DocVQA's own JSON (`data`), alike: `questionId`, `question`, `image`, `answers`."""
    for where, row in folder.rows("question", "image", train=train):
        answers = texts_of(row.get("answers"))
        if answers:
            yield _open("docvqa", str(row.get("questionId") or where), folder.image(row), row["question"], answers, "anls")


def chartqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows (`type`, `question`, `answer`, `image`, or `human_or_machine` (0 or 1), `query`, `label`, `image`), or ChartQA's own
    `*_human.json` and `*_augmented.json` (`imgname`, `query`, `label`), beside which its download has a file for each chart: where there
    are such, only they are read. Asked by people and made by machine are two categories, whose mean is the benchmark's number."""
    own = ("_human.json", "_augmented.json")
    keys = folder.keys(train=train)
    if any(key.endswith(own) for key in folder.files):
        keys = [key for key in keys if key.endswith(own)]
    for where, row in folder.rows_in(keys):
        question, answer = row.get("question") or row.get("query"), row.get("answer", row.get("label"))
        value = text_of(next(iter(answer), None) if isinstance(answer, list) else answer)
        if question is None or not value:
            continue
        by_people = (
            str(row["human_or_machine"]) in ("0", "human") if "human_or_machine" in row else "human" in str(row.get("type") or where)
        )
        kind = "human" if by_people else "augmented"
        names = [str(row["imgname"])] if row.get("imgname") else []
        yield _question("chartqa", where, f"chartqa_{kind}", folder.image(row, *names), str(question), value, {"value": value}, "relaxed")


def refcoco(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Rows `question_id`, `image`, `answer` (expressions, each asked for itself), `bbox` (x, y, width, height in pixels). REFER's own
    pickles are not read: opening one runs whatever it says."""
    for where, row in folder.rows("answer", "bbox", "image", train=train):
        x, y, width, height = (float(side) for side in row["bbox"])
        expressions = [row["answer"]] if isinstance(row["answer"], str) else list(row["answer"])
        for number, expression in enumerate(expressions):
            name = f"{row.get('question_id') or where}-{number}"
            gold, picture = {"pixels": [x, y, x + width, y + height]}, folder.image(row)
            text = f"What is the location of {text_of(expression)} in the image?"  # Ferret's (recipes.md 2.4)
            question = _question("refcoco", name, "refcoco", picture, text, "", gold, "iou_50", request="")
            yield replace(question, box_image=picture)


def _open(name: str, number: str, picture: Picture, question: str, answers: Sequence[str], metric: str) -> Question:
    common = Counter(answer for answer in answers if answer).most_common(1)[0][0]
    return _question(name, number, name, picture, question, common, {"answers": list(answers)}, metric)


def _question(
    name: str,
    number: str,
    category: str,
    picture: Picture,
    question: str,
    answer: str,
    gold: dict[str, Any],
    metric: str,
    *,
    request: str = SHORT,
) -> Question:
    return Question(
        id=f"{name}/{number}", category=category, metric=metric, form="chat", turns=asked({"image": 0}, question.strip()), answer=answer,
        gold=gold, images=(picture,), request=request,
    )  # fmt: skip
