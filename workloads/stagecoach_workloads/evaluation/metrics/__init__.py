"""Metrics as their references compute them. `score` is one answer's; CIDEr needs all answers at once (`cider.py`)."""

from collections.abc import Callable, Mapping
from typing import Any

from stagecoach_workloads.evaluation.metrics.anls import anls
from stagecoach_workloads.evaluation.metrics.boxes import box_hits, point_hits
from stagecoach_workloads.evaluation.metrics.exact import choice, exact, exact_any
from stagecoach_workloads.evaluation.metrics.relaxed import relaxed
from stagecoach_workloads.evaluation.metrics.vqa import textvqa_accuracy, vqa_accuracy

CIDER = "cider"
COUNTING = frozenset({"exact", "exact_any", "choice", "iou_50", "point", "relaxed"})  # 0 or 1 a sample: how many were right means something

_METRICS: Mapping[str, Callable[[str, Mapping[str, Any]], float]] = {
    "exact": lambda answer, gold: exact(answer, gold["value"]),
    "exact_any": lambda answer, gold: exact_any(answer, gold["answers"]),
    "choice": lambda answer, gold: choice(answer, gold["options"], gold["right"]),
    "iou_50": lambda answer, gold: box_hits(answer, gold["value"]),
    "point": lambda answer, gold: point_hits(answer, gold["value"]),
    "vqa_accuracy": lambda answer, gold: vqa_accuracy(answer, gold["answers"]),
    "textvqa_accuracy": lambda answer, gold: textvqa_accuracy(answer, gold["answers"]),
    "anls": lambda answer, gold: anls(answer, gold["answers"]),
    "relaxed": lambda answer, gold: relaxed(answer, gold["value"]),
}


def score(metric: str, answer: str, gold: Mapping[str, Any]) -> float:
    """0 to 1. Raises KeyError for a metric that is not of single answers."""
    return _METRICS[metric](answer, gold)


def is_single(metric: str) -> bool:
    """Can one answer be scored alone?"""
    return metric in _METRICS
