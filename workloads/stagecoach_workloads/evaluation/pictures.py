"""A few answers to look at: pictures with the right box and the answer's, and what was asked and said."""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stagecoach.contract.evaluation import SAMPLES
from stagecoach.storage import Store
from stagecoach_workloads.data.images import ImageRefused, decode
from stagecoach_workloads.evaluation.metrics.boxes import read_box, read_point
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.segments import Answer
from stagecoach_workloads.telemetry.drawing import Box, draw_boxes

EACH = 2  # right ones and wrong ones of a category
LEAST_SIDE = 192  # pixels: small pictures are enlarged, so that a drawn box can be seen
MOST_SIDE = 768
MOST_IMAGES = 8


def write_samples(store: Store, samples: Iterable[tuple[Answer, Question]]) -> int:
    """`samples/*.png` and `samples/samples.json`. Returns how many."""
    told = []
    for number, (answer, question) in enumerate(samples):
        entry: dict[str, Any] = {
            "id": answer.id, "category": answer.category, "shots": answer.shots, "question": answer.question, "answer": answer.answer,
            "gold": answer.gold, "score": answer.score, "picture": None,
        }  # fmt: skip
        try:
            body = picture_of(question, answer)
        except ImageRefused:  # a damaged image is told as the answer's trouble
            body = None
        if body is not None:
            name = f"{number:03d}-" + re.sub(r"[^A-Za-z0-9_.@+-]+", "_", answer.id)  # two rows of a file may have one id
            store.publish(f"{SAMPLES}/{name}.png", body)
            entry["picture"] = f"{SAMPLES}/{name}.png"
        told.append(entry)
    store.publish(f"{SAMPLES}/samples.json", json.dumps(told, ensure_ascii=False, sort_keys=True, indent=1).encode())
    return len(told)


def chosen(answers: Sequence[Answer]) -> list[int]:
    """Places of the first right and wrong ones of each category, asked with the fewest shots."""
    fewest: dict[str, int] = {}
    for answer in answers:
        fewest[answer.category] = min(answer.shots, fewest.get(answer.category, answer.shots))
    kinds: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        kind = kinds[answer.category, (answer.score or 0) >= 0.5]
        if answer.shots == fewest[answer.category] and len(kind) < EACH and not answer.trouble:
            kind.append(place)
    return [place for kind in kinds.values() for place in kind]


def picture_of(question: Question, answer: Answer) -> bytes | None:
    """The question's images side by side as PNG, the right box and the answer's on the first one. None without images."""
    if not question.images:
        return None
    shown = [_enlarged(decode(picture.read())) for picture in question.images[-MOST_IMAGES:]]
    boxes = _boxes(answer, shown[0].shape[1], shown[0].shape[0])
    if boxes:
        shown[0] = draw_boxes(shown[0], list(boxes.values()), list(boxes))
    return _png(_beside(shown))


def _boxes(answer: Answer, width: int, height: int) -> dict[str, Box]:
    """In pixels; boxes are told on a canvas of 1000 x 1000."""
    if answer.metric not in ("iou_50", "point"):
        return {}
    found: dict[str, Sequence[float]] = {"right": answer.gold["value"]}
    point = read_point(answer.answer) if answer.metric == "point" else None
    box = (point[0] - 12, point[1] - 12, point[0] + 12, point[1] + 12) if point else read_box(answer.answer)
    if box is not None:
        found["answer"] = box
    return {
        name: (x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000) for name, (x1, y1, x2, y2) in found.items()
    }


def _enlarged(pixels_HWC: np.ndarray) -> np.ndarray:
    """Whole multiples for small images, at most MOST_SIDE for large ones."""
    from PIL import Image

    height, width = pixels_HWC.shape[:2]
    factor = max(1, min(-(-LEAST_SIDE // min(height, width)), MOST_SIDE // max(height, width)))
    image = Image.fromarray(pixels_HWC)
    if factor > 1:
        image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    return np.asarray(image)


def _beside(images: Sequence[np.ndarray]) -> np.ndarray:
    gap, height = 6, max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    canvas = np.full((height, width, 3), 128, np.uint8)
    left = 0
    for image in images:
        canvas[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return canvas


def _png(pixels_HWC: np.ndarray) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels_HWC).save(held, "PNG", optimize=True)
    return held.getvalue()
