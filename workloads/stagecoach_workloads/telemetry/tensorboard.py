"""Scalars, images and texts for TensorBoard, written by a thread to `$STAGECOACH_LOCAL_DIR/tensorboard`.

The supervisor publishes the folder as `{job}/tensorboard/attempt-{n}/`, so that `tensorboard --logdir {job}/tensorboard` shows one run per
attempt: a number is known by job, attempt and step, and where attempts overlap the last one counts. Tags, all of them stable:

    loss, loss/{kind or category or part}     means of the step; "loss/kind/pairs", "loss/category/ocr", "loss/z"
    grad_norm, taken                          before clipping; 0 where the step was skipped
    rate/{group}                              learning rates
    speed/{tokens_per_s,images_per_s,step_s,mfu}
    batch/{targets,tokens,images}             of the step, over all ranks
    seconds/{bucket}                          of this attempt, summing to its wall time
    validation/{category}
    share/{source,kind,category}/{name}       of what was consumed since the last point
    samples/{name}                            images (with boxes) and texts
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stagecoach_workloads.telemetry.background import Background

if TYPE_CHECKING:
    from stagecoach_workloads.telemetry.protos import Summary

FOLDER = "tensorboard"
WAITING_BYTES = 64 << 20  # of what waits for a slow disk; then it is dropped
IMAGE_SIDE = 512  # pixels; a larger image is shown smaller
TEXT_CHARS = 20_000
_SCALAR_BYTES = 200  # a scalar as it waits: a tag and a number


@dataclass(frozen=True)
class _Scalars:
    step: int
    wall_time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class _Image:
    step: int
    wall_time: float
    tag: str
    image_HWC: np.ndarray


@dataclass(frozen=True)
class _Text:
    step: int
    wall_time: float
    tag: str
    text: str


class Files(Protocol):
    """Where serialized events go."""

    def write(self, event: bytes) -> None:
        """May block for ever, and may raise anything."""
        ...


class TensorBoardSink:
    """Every method returns at once. A disk that is full, slow or gone loses numbers, which are counted, and nothing else."""

    def __init__(self, files: Files, *, budget: int = WAITING_BYTES) -> None:
        self._files = files
        self.background: Background[_Scalars | _Image | _Text] = Background("tensorboard", self._write, budget=budget)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self.background.offer(_Scalars(step, time.time(), dict(values)), _SCALAR_BYTES * len(values))

    def image(self, step: int, tag: str, image_HWC: np.ndarray) -> None:
        """uint8, three channels; copied."""
        self.background.offer(_Image(step, time.time(), tag, np.array(image_HWC)), image_HWC.nbytes)

    def text(self, step: int, tag: str, text: str) -> None:
        """Shown as it is, not as Markdown."""
        self.background.offer(_Text(step, time.time(), tag, text[:TEXT_CHARS]), len(text) + _SCALAR_BYTES)

    # --- in the thread

    def _write(self, item: _Scalars | _Image | _Text) -> None:
        from stagecoach_workloads.telemetry.protos import Event  # here: importing is the thread's work too

        if isinstance(item, _Scalars):
            summary = _scalar_summary(item.values)
        elif isinstance(item, _Image):
            summary = _image_summary(item.tag, item.image_HWC)
        else:
            summary = _text_summary(item.tag, item.text)
        self._files.write(Event(wall_time=item.wall_time, step=item.step, summary=summary).SerializeToString())


def _scalar_summary(values: Mapping[str, float]) -> "Summary":
    from stagecoach_workloads.telemetry.protos import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _image_summary(tag: str, image_HWC: np.ndarray) -> "Summary":
    from PIL import Image

    from stagecoach_workloads.telemetry.protos import Summary

    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"image {tag} is {image_HWC.dtype} of shape {image_HWC.shape}; give uint8, height x width x 3")
    picture = Image.fromarray(np.ascontiguousarray(image_HWC))
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    body = io.BytesIO()
    picture.save(body, format="PNG")
    shown = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=body.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=shown)])


def _text_summary(tag: str, text: str) -> "Summary":
    from stagecoach_workloads.telemetry.protos import Summary, SummaryMetadata, TensorProto, TensorShapeProto

    literal = "\n".join(f"    {line}" for line in text.splitlines()).encode()
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype="DT_STRING", string_val=[literal], tensor_shape=shape)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
