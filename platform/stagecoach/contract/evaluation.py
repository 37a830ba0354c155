"""What an evaluation is asked (`job.json` settings) and what it answers: `scores.json` in its job folder, a stage's `evaluation/{suite}/`.

Torch-free: flows start evaluations and reports show them. The answers themselves are JSON lines in `answers/`, pictures in `samples/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.contract.job import ObjectRef
from stagecoach.contract.plan import Count, Fraction, WholeNumber
from stagecoach.contract.records import Record, Stored

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSettings(Record):
    """One suite on one checkpoint."""

    stage_uri: str  # the stage's job folder: its plan.json says model and tokenizer
    checkpoint: ObjectRef
    suite: str
    data: str | None = None  # root of a made corpus, or folder of a published benchmark; None: the stage's own validation splits
    shots: tuple[WholeNumber, ...] = (0,)  # each is scored
    limit: Count | None = None  # samples per category; None: all
    seed: WholeNumber = 0  # of the shots that are drawn
    max_new_tokens: Count = 32
    batch_size: Count = 16
    shuffle_images: bool = False  # a control: every question gets another one's images


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Record):
    """One category at one number of shots."""

    category: str
    metric: str  # "exact", "vqa_accuracy", "cider", "anls", "relaxed", "iou_50", ...
    shots: WholeNumber = 0
    samples: Count
    value: float
    low: float  # 95 % bootstrap interval
    high: float
    correct: WholeNumber | None = None  # of metrics that count
    chance: float | None = None  # one of the question's answers at random
    blind: float | None = None  # the best without looking at the image
    p_above_chance: Fraction | None = None  # exact binomial, one-sided
    p_above_blind: Fraction | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores(Stored):
    """`scores.json`: written once, last."""

    FORMAT = "stagecoach.scores"

    settings: EvaluationSettings
    scores: tuple[Score, ...]
    answers: int  # lines below answers/
    metrics: Mapping[str, float] = field(default_factory=dict)  # aggregates, such as the mean over categories
    seconds: float = 0.0
    finished_at: str
