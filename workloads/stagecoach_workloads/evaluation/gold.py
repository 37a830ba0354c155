"""What the right answer is, where files tell it in another way than the model is taught to."""

from typing import Any

from stagecoach_workloads.data.images import image_info
from stagecoach_workloads.evaluation.question import Question

CANVAS = 1000  # a side: boxes are taught on a canvas of 1000 x 1000 (Ferret's convention)


def gold_of(question: Question) -> dict[str, Any]:
    """What an answer is compared with; a box in pixels becomes one on the canvas. Raises ImageRefused, or SampleError, when the header of
    the box's image cannot be read."""
    if question.box_image is None:
        return dict(question.gold)
    info = image_info(question.box_image.read())
    x1, y1, x2, y2 = question.gold["pixels"]
    scale_x, scale_y = CANVAS / info.width, CANVAS / info.height
    return {"value": [x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y]}


def answer_of(question: Question) -> str:
    """How the right answer reads when the question is a shot. Raises as `gold_of` does."""
    if question.box_image is None:
        return question.answer
    return str([round(side) for side in gold_of(question)["value"]])
