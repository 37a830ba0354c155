"""Reads a stage's evaluations: `evaluation/{suite}/` with scores.json, answers and pictures. Bounded, and lenient: an evaluation that is
still running has answers and no scores."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecoach.contract.evaluation import ANSWERS, SAMPLES, SCORES, Score, Scores
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode
from stagecoach.errors import StagecoachError
from stagecoach.report.numbers import finite
from stagecoach.storage import NotFound, Store

MOST_SUITES = 40
MOST_ANSWER_BYTES = 32 << 20  # of a suite
MOST_ANSWERS = 50_000
LONGEST_ANSWER_LINE = 256 << 10
MOST_SAMPLES = 400
MOST_TEXT = 600  # of a question or an answer
SAMPLES_FILE = f"{SAMPLES}/samples.json"
MOST_PICTURE_BYTES = 300 << 10
PICTURES_BYTES = 900 << 10  # of the whole report: base64 makes it 1.2 MB


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered question. `worth` is 0 to 1; None where the metric scores all answers together."""

    id: str
    category: str
    shots: int
    question: str
    answer: str
    gold: str
    worth: float | None
    picture: str | None = None  # its key in the evaluation's folder: the images side by side, boxes drawn
    trouble: str = ""  # why nothing was asked


@dataclass(kw_only=True)
class Suite:
    """What is there of one evaluation."""

    name: str
    store: Store
    scores: Scores | None = None
    answers: list[Answer] = field(default_factory=list)
    samples: list[Answer] = field(default_factory=list)  # those that were chosen to be looked at, with pictures
    problems: list[str] = field(default_factory=list)


class PictureBudget:
    """Gives pictures as data URIs until there are enough of them for one file."""

    def __init__(self, left: int = PICTURES_BYTES) -> None:
        self.left = left
        self._given: dict[tuple[str, str], str | None] = {}

    def data_uri(self, store: Store, key: str) -> str | None:
        """None when it is missing, no PNG or JPEG, or too large for what is left."""
        known = (store.uri, key)
        if known not in self._given:
            self._given[known] = self._read(store, key)
        return self._given[known]

    def _read(self, store: Store, key: str) -> str | None:
        try:
            if store.stat(key).size > min(self.left, MOST_PICTURE_BYTES):
                return None
            body = store.read(key)
        except (StagecoachError, OSError):
            return None
        kind = picture_kind(body)
        if kind is None or len(body) > self.left:
            return None
        self.left -= len(body)
        return f"data:image/{kind};base64,{base64.b64encode(body).decode()}"


def picture_kind(body: bytes) -> str | None:
    """By its first bytes. Nothing else is put into the page: an SVG could hold links and scripts."""
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "jpeg" if body.startswith(b"\xff\xd8\xff") else None


def read_suites(folder: JobFolder) -> list[Suite]:
    """Every evaluation of a stage, by name. Raises nothing for one that is damaged: its `problems` say what is wrong."""
    try:
        names = folder.store.list_folders("evaluation")
    except StagecoachError:
        return []
    return [_read_suite(name, folder.store.child(f"evaluation/{name}")) for name in names[:MOST_SUITES]]


def _read_suite(name: str, store: Store) -> Suite:
    suite = Suite(name=name, store=store)
    try:
        suite.scores = decode(Scores, store.read(SCORES), uri=store.uri_of(SCORES))
    except NotFound:
        suite.problems.append("not scored yet")
    except StagecoachError as error:
        suite.problems.append(str(error))
    try:
        suite.samples = read_samples(store)
        suite.answers = list(_answers(store))
    except StagecoachError as error:
        suite.problems.append(str(error))
    return suite


def read_samples(store: Store) -> list[Answer]:
    """`samples/samples.json`; nothing where there is none. Entries that are none are passed over."""
    try:
        if store.stat(SAMPLES_FILE).size > MOST_ANSWER_BYTES:
            return []
        told = json.loads(store.read(SAMPLES_FILE))
    except (NotFound, ValueError, RecursionError):
        return []
    found = (answer_of(entry) for entry in told[:MOST_SAMPLES]) if isinstance(told, list) else ()
    return [answer for answer in found if answer is not None]


def _answers(store: Store) -> Iterator[Answer]:
    """In order of their segments, until enough are read."""
    left, given = MOST_ANSWER_BYTES, 0
    for info in store.list(ANSWERS):
        if info.size > left:
            return
        left -= info.size
        for line in store.read(info.key).split(b"\n"):
            answer = read_answer(line)
            if answer is None:
                continue
            yield answer
            given += 1
            if given == MOST_ANSWERS:
                return


def read_answer(line: bytes) -> Answer | None:
    """None for a line that is no answer: torn, foreign, or far too long."""
    if not line.strip() or len(line) > LONGEST_ANSWER_LINE:
        return None
    try:
        return answer_of(json.loads(line))
    except (ValueError, RecursionError):
        return None


def answer_of(told: object) -> Answer | None:
    """An answer as evaluations write it; what is missing is empty. None for anything but an object."""
    if not isinstance(told, dict):
        return None
    shots, picture = told.get("shots"), told.get("picture")
    is_key = isinstance(picture, str) and picture.startswith(f"{SAMPLES}/") and ".." not in picture
    return Answer(
        id=_text(told.get("id")),
        category=_text(told.get("category")),
        shots=shots if isinstance(shots, int) else 0,
        question=_text(told.get("question")),
        answer=_text(told.get("answer")),
        gold=_text(told.get("gold")),
        worth=finite(told.get("score")),
        picture=picture if is_key else None,
        trouble=_text(told.get("trouble")),
    )


def _text(value: Any) -> str:
    """What a person reads: of a gold record its value, of a list its entries."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value[:MOST_TEXT]
    if isinstance(value, dict):
        return (
            _text(value["value"]) if "value" in value else _text(value.get("answers")) or json.dumps(value, ensure_ascii=False)[:MOST_TEXT]
        )
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " | ".join(dict.fromkeys(value))[:MOST_TEXT]
    return json.dumps(value, ensure_ascii=False)[:MOST_TEXT]


# --- what scores mean


ALPHA = 0.01  # a category counts as learned below this p


def is_above_chance(score: Score) -> bool | None:
    """By the exact test where there is one, else by the interval. None where chance is not known."""
    if score.p_above_chance is not None:
        return score.p_above_chance < ALPHA
    return None if score.chance is None else score.low > score.chance


def is_above_blind(score: Score) -> bool | None:
    """Better than the best that does not look at the image."""
    if score.p_above_blind is not None:
        return score.p_above_blind < ALPHA
    return None if score.blind is None else score.low > score.blind


def skill(score: Score) -> float:
    """How much of the way from doing without skill to perfect; negative below. Ranks categories of different metrics."""
    floor = max((value for value in (score.chance, score.blind) if value is not None), default=0.0)
    return score.value - floor if floor >= 1 else (score.value - floor) / (1 - floor)


def same_question(score: Score) -> tuple[str, str, int]:
    """What two stages' scores are compared by."""
    return score.category, score.metric, score.shots


def worst_of(answers: Sequence[Answer], *, of_each: int) -> list[Answer]:
    """The lowest of every category, asked with the fewest shots, below one half; by category. Answers without a worth are left out."""
    fewest: dict[str, int] = {}
    for answer in answers:
        fewest[answer.category] = min(answer.shots, fewest.get(answer.category, answer.shots))
    by_category: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.worth is not None and answer.worth < 0.5 and answer.shots == fewest[answer.category]:
            by_category.setdefault(answer.category, []).append(answer)
    ordered = (sorted(by_category[name], key=lambda a: (a.worth or 0.0, a.id))[:of_each] for name in sorted(by_category))
    return [answer for each in ordered for answer in each]
