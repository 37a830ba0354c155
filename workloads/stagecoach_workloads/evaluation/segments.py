"""Answers in the bucket: `answers/{segment:06d}.jsonl`, each published whole or not at all.

Segment s holds the items [s x SIZE, (s + 1) x SIZE) of the suite's fixed order, so what is done does not depend on who did it: another
attempt, with another number of ranks, goes on with the segments that are missing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stagecoach.contract.evaluation import ANSWERS
from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach_workloads.evaluation.suite import Item

SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line: an item and what the model said. `trouble`: why nothing was asked; such an answer counts as wrong."""

    id: str
    category: str
    metric: str
    shots: int
    shots_shown: int  # fewer when the context was too short
    question: str
    gold: dict[str, Any]
    answer: str
    score: float | None  # None: scored with all others (CIDEr)
    finished: bool = True  # False: cut off at max_new_tokens
    trouble: str = ""
    images: int = 0
    options: list[str] = field(default_factory=list)


def num_segments(items: int) -> int:
    return -(-items // SIZE)


def items_of(items: Sequence[Item], segment: int) -> Sequence[Item]:
    return items[segment * SIZE : (segment + 1) * SIZE]


def done_segments(store: Store) -> set[int]:
    """By a fresh listing."""
    names = (info.key.rpartition("/")[2].removesuffix(".jsonl") for info in store.list(ANSWERS))
    return {int(name) for name in names if name.isdigit()}


def write_segment(store: Store, segment: int, answers: Sequence[Answer]) -> None:
    """Whole or not at all. Two attempts that both write it write the same questions."""
    lines = (json.dumps(asdict(answer), ensure_ascii=False, sort_keys=True) for answer in answers)
    store.publish(_key(segment), "".join(f"{line}\n" for line in lines).encode())


def read_segment(store: Store, segment: int, items: Sequence[Item]) -> list[Answer]:
    """Raises DataError when it does not answer these items: somebody wrote another evaluation's answers there."""
    uri = store.uri_of(_key(segment))
    try:
        lines = store.read(_key(segment)).decode().split("\n")  # not splitlines(): a text may hold U+2028
        answers = [Answer(**json.loads(line)) for line in lines if line]
    except (ValueError, TypeError) as error:
        raise DataError(f"{uri}: cannot be read: {error}; remove it and run the evaluation again: it is answered anew") from None
    if [(answer.id, answer.category) for answer in answers] != [(item.id, item.question.category) for item in items]:
        raise DataError(f"{uri}: answers other questions than this suite has there; remove `{ANSWERS}/` and run the evaluation again")
    return answers


def _key(segment: int) -> str:
    return f"{ANSWERS}/{segment:06d}.jsonl"
