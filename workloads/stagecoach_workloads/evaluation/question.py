"""What is asked: one question of any suite, with its images at their places, and what a right answer is."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stagecoach_workloads.data.samples import Turn

Form = Literal["chat", "document", "caption"]


class Picture(Protocol):
    """An encoded image (JPEG, PNG or WEBP) that may still lie in the bucket."""

    def read(self) -> bytes: ...

    @property
    def identity(self) -> Hashable:
        """Equal for equal images, as far as that is known. May read the image."""
        ...


@dataclass(frozen=True)
class InMemory:
    """An image that came with its sample."""

    body: bytes

    def read(self) -> bytes:
        return self.body

    @property
    def identity(self) -> Hashable:
        return self


@dataclass(frozen=True, kw_only=True)
class Question:
    """`turns` is all that comes before the answer; `{"image": i}` in them shows `images[i]`.

    form: `chat` is a user's turn, `document` a text to go on from, `caption` an image to describe (MM1's prompt for base models).
    `answer` is how the right answer reads when this question is a shot (of boxes in pixels, `gold.answer_of` tells it), `lead` and `tail`
    what stands around it in a document.
    `gold` is what `metric` compares with. With `options` nothing is generated: the likeliest of them is the answer.
    """

    id: str
    category: str
    metric: str
    form: Form
    turns: tuple[Turn, ...]
    answer: str
    gold: Mapping[str, Any]
    images: tuple[Picture, ...] = ()
    lead: str = ""
    tail: str = ""
    options: tuple[str, ...] = ()
    shots_inside: int = 0  # examples that stand in the document itself
    request: str = ""  # how the answer is wanted, told to a fine-tuned model only
    is_video: bool = False
    box_image: Picture | None = None  # whose pixels `gold` tells a box in, whatever image is shown
    extra: Mapping[str, Any] = field(default_factory=dict)  # of the sample: boxes, rule, ...

    @property
    def text(self) -> str:
        """What is asked, in words; images are shown as <image>."""
        return "".join(part if isinstance(part, str) else "<image>" for turn in self.turns for part in turn.content)
