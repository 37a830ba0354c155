"""What an evaluation is asked (`job.json` settings) and what it answers: `scores.json` in its job folder, a stage's `evaluation/{suite}/`.

Torch-free: flows start evaluations and reports show them. The answers themselves are JSON lines in `answers/`, pictures in `samples/`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.contract.job import ObjectRef
from stagecoach.contract.plan import Count, Fraction, WholeNumber
from stagecoach.contract.records import Record, Stored
from stagecoach.errors import ConfigError

SCORES = "scores.json"
ANSWERS = "answers"  # {segment:06d}.jsonl
SAMPLES = "samples"  # pictures, and samples.json, which tells what is on them

# Suites of a made corpus: its datasets.
MADE_SUITES: dict[str, tuple[str, ...]] = {
    "captions": ("captions", "captions_synthetic"),
    "vqa": ("sft_general",),
    "general": ("sft_general",),
    "text_rich": ("sft_text_rich",),
    "knowledge": ("sft_science", "sft_math", "sft_code"),
    "science": ("sft_science",),
    "math": ("sft_math",),
    "code": ("sft_code",),
    "refer_ground": ("sft_refer_ground",),
    "multi_image": ("sft_multi_image",),
    "in_context": ("interleaved",),
    "interleaved": ("interleaved",),
    "text": ("text", "sft_text"),
    "ocr_pages": ("ocr_pages",),
    "video": ("video",),
    "ui": ("ui",),
    "preference": ("preference",),
    "safety": ("safety",),
    "mmbase": ("sft_general", "sft_text_rich", "sft_science", "sft_math", "sft_code"),
}

# Published benchmarks: {name: what it is}. They are read from a folder or bucket, never downloaded.
PUBLISHED_SUITES: dict[str, str] = {
    "coco_captions": "COCO captions, CIDEr",
    "textcaps": "TextCaps, CIDEr",
    "vqav2": "VQAv2, VQA accuracy",
    "textvqa": "TextVQA, VQA accuracy",
    "scienceqa": "ScienceQA, multiple choice",
    "mmmu": "MMMU, multiple choice and open",
    "chartqa": "ChartQA, relaxed accuracy",
    "docvqa": "DocVQA, ANLS",
    "refcoco": "RefCOCO, IoU above 0.5",
    "nextqa": "NExTQA, multiple choice over video",
}


KNOWN_SUITES = (*MADE_SUITES, *PUBLISHED_SUITES)


def check_suite(name: str) -> None:
    """Suites of a made corpus may be joined by `+`, to be asked in one job. Raises ConfigError, with the nearest names, for any other."""
    parts = [name] if name in PUBLISHED_SUITES else name.split("+")
    for part in parts:
        if part in MADE_SUITES or (part in PUBLISHED_SUITES and len(parts) == 1):
            continue
        if part in PUBLISHED_SUITES:
            raise ConfigError(f"suite {name!r}: {part} is a published benchmark with files of its own; ask it alone")
        near = difflib.get_close_matches(part.lower().replace("-", "_"), KNOWN_SUITES, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(KNOWN_SUITES)}"
        raise ConfigError(f"suite {part!r} is not one that can be asked; {hint}")


IN_CONTEXT_SHOTS = (0, 4, 8)  # without shots nothing tells the rule: 0 is the control


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSettings(Record):
    """One suite on one checkpoint."""

    stage_uri: str  # the stage's job folder: its plan.json says model and tokenizer
    checkpoint: ObjectRef
    suite: str
    data: str | None = None  # root of a made corpus, or folder of a published benchmark; None: the stage's own validation splits
    data_fingerprint: str | None = None  # of what `data` held when it was asked for; asked again after a change, it is another evaluation
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


REMARKS = {  # by a name in `Scores.metrics`
    "not_asked": "questions could not be asked and count as wrong",
    "cut_off": "answers were cut off at the longest length (--max-new-tokens)",
    "shots_left_out": "shots in all were left out: they did not fit into the prompts, or there were not as many",
}


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

    def remarks(self) -> list[str]:
        """What the scores do not show: questions that were not asked, or not answered, as they should have been."""
        return [f"{value:,.0f} {says}" for name, says in REMARKS.items() if 0 < (value := self.metrics.get(name, 0.0)) < math.inf]
