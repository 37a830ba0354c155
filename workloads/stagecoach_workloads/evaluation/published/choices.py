"""Multiple choice: ScienceQA, MMMU (also open), NExTQA over video."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from stagecoach.errors import DataError
from stagecoach_workloads.data.media import MediaRefused
from stagecoach_workloads.data.samples import Content
from stagecoach_workloads.evaluation.published.folder import (
    LETTER,
    SHORT,
    Folder,
    asked,
    evaluation_split,
    is_training,
    letter,
    lettered,
    text_of,
)
from stagecoach_workloads.evaluation.published.rows import Frame, Row, count_frames
from stagecoach_workloads.evaluation.question import Picture, Question

_IMAGE_TAG = re.compile(r"<image (\d+)>")
_NEXT_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def scienceqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Rows `image` (or none), `question`, `choices`, `answer` (its number), `hint`; ScienceQA's own `problems.json` is alike, with
    `{id}/image.png` below the folder and its `split` told in each row. Questions with and without an image are two categories (SQA-IMG)."""
    for where, row in _science_rows(folder, train=train):
        options, right = [str(each) for each in row["choices"]], int(row["answer"])
        hint = text_of(row.get("hint"))
        text = f"{f'Context: {hint}' if hint else ''}\n{row['question']}".strip() + lettered(options)
        picture = _science_image(folder, row)
        content: list[Content] = [{"image": 0}, text] if picture is not None else [text]
        kind = "scienceqa_image" if picture is not None else "scienceqa_text"
        images = (picture,) if picture is not None else ()
        yield _choice("scienceqa", str(row.get("id") or where), kind, content, images, options, right)


def _science_rows(folder: Folder, *, train: bool) -> Iterator[tuple[str, Row]]:
    """`problems.json` holds all splits: its test split is asked, its training split is for shots. Where there is one, only it is read."""
    own = [key for key in folder.files if key.rpartition("/")[2] == "problems.json"]
    for where, row in folder.rows_in(own or folder.keys(train=train), "question", "choices", "answer"):
        if "split" not in row or row["split"] == ("train" if train else "test"):
            yield where, row


def _science_image(folder: Folder, row: Row) -> Picture | None:
    image = row.get("image")
    if isinstance(image, str) and image.endswith("image.png"):  # all are called so: the id must be in the path
        return folder.image({"image": image if "/" in image else f"{row.get('id')}/{image}"}, moved=False)
    return folder.image(row) if image is not None else None


def mmmu(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Rows `id`, `question`, `options` (a list written as text), `answer`, `question_type`, `image_1` to `image_7`, which
    `<image n>` in question and options stands for. The subject in the id is the category. Its `dev` files are its five examples a subject,
    so they are for shots; public evaluators ask `validation`."""
    keys = [key for key in folder.files if (is_training(key) or evaluation_split(key) == "dev") == train]
    for where, row in folder.rows_in(keys, "id", "question", "options", "question_type"):
        options = _options(row["options"], where)
        is_choice = row["question_type"] == "multiple-choice"
        answer = row.get("answer")
        if answer in (None, "", "?"):
            continue
        content, images = _tagged(folder, row, f"{row['question']}{lettered(options) if is_choice else ''}")
        subject = "_".join(str(row["id"]).split("_")[1:-1]) or "mmmu"
        category = f"mmmu_{subject.lower()}"
        if is_choice:
            yield _choice("mmmu", str(row["id"]), category, content, images, options, ord(str(answer).strip()) - ord("A"))
            continue
        answers = _open_answers(answer)
        yield Question(
            id=f"mmmu/{row['id']}", category=f"{category}_open", metric="exact_any", form="chat", turns=asked(*content), answer=answers[0],
            gold={"answers": answers}, images=images, request=SHORT,
        )  # fmt: skip


def _tagged(folder: Folder, row: Row, text: str) -> tuple[list[Content], tuple[Picture, ...]]:
    """Images where their tags first stand; a tag that stands again becomes words."""
    content: list[Content] = []
    images: dict[str, Picture] = {}
    for place, part in enumerate(_IMAGE_TAG.split(text)):
        if place % 2 == 0:
            content += [part] if part else []
        elif part in images:
            content.append(f"image {part}")
        else:
            content.append({"image": len(images)})
            images[part] = folder.image(row, column=f"image_{part}")
    return content, tuple(images.values())


def nextqa(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Rows `video`, `question`, `a0` to `a4`, `answer` (its number), `qid`, `type` (C…, T… or D…), parquet or NExTQA's own CSV, with
    `{video}.mp4` (or another video file) below the folder. Its own map of videos to VidOR's folders may lie beside: a video is found in
    any folder."""
    keys = [key for key in folder.keys(train=train) if key.rpartition("/")[2] != "map_vid_vidorID.json"]
    for where, row in folder.rows_in(keys, "video", "question", "answer", "a0", "a4"):
        options = [text_of(row[f"a{number}"]) for number in range(5)]
        frames = _video(folder, text_of(row["video"]))
        content: list[Content] = [{"image": number} for number in range(len(frames))]
        content.append(f"{text_of(row['question']).rstrip('?')}?{lettered(options)}")
        category = f"nextqa_{_NEXT_KINDS.get(text_of(row.get('type'))[:1], 'other')}"
        name = f"{row['video']}-{row.get('qid', where)}"
        yield _choice("nextqa", name, category, content, frames, options, int(row["answer"]), is_video=True)


def _video(folder: Folder, name: str) -> tuple[Picture, ...]:
    key = next((key for suffix in (".mp4", ".webm", ".mkv", ".avi") if (key := folder.file(f"{name}{suffix}")) is not None), None)
    if key is None:
        raise DataError(f"{folder.store.uri}: the video {name} (.mp4, .webm, .mkv or .avi) is not there; put the videos into the folder")
    try:
        frames = count_frames(folder.store, key)
    except MediaRefused as error:
        raise DataError(f"{folder.store.uri_of(key)}: {error}") from None
    return tuple(Frame(folder.store, key, number) for number in range(frames))


def _choice(
    name: str,
    number: str,
    category: str,
    content: list[Content],
    images: tuple[Picture, ...],
    options: list[str],
    right: int,
    *,
    is_video: bool = False,
) -> Question:
    if not 0 <= right < len(options):
        raise DataError(f"{name} {number}: its answer is option {right} of {len(options)}")
    return Question(
        id=f"{name}/{number}", category=category, metric="choice", form="chat", turns=asked(*content), answer=letter(right),
        gold={"options": options, "right": right}, images=images, request=LETTER, is_video=is_video,
    )  # fmt: skip


def _options(value: Any, where: str) -> list[str]:
    try:
        return _listed(value or [])
    except (ValueError, SyntaxError):
        raise DataError(f"{where}: `options` is {str(value)[:60]!r}, not a list written as text") from None


def _open_answers(value: Any) -> list[str]:
    """All that are right. `[0, 3)` only begins like a list: it is one text."""
    try:
        return _listed(value) if isinstance(value, list) or str(value).startswith("[") else [str(value)]
    except (ValueError, SyntaxError):
        return [str(value)]


def _listed(value: Any) -> list[str]:
    """MMMU writes its lists as Python texts. Raises ValueError or SyntaxError for a text that is none."""
    return [str(each) for each in (value if isinstance(value, list) else ast.literal_eval(str(value)))]
