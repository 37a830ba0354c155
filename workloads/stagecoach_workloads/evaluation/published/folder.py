"""The files of one benchmark, and what all readers share."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach_workloads.data.samples import Content, Turn
from stagecoach_workloads.evaluation.published.rows import InParquet, InStore, Row, annotation_files, rows_of, whole_json
from stagecoach_workloads.evaluation.question import Picture, Question

SHORT = "\nAnswer the question using a single word or phrase."  # as public evaluators ask fine-tuned models
LETTER = "\nAnswer with the option's letter from the given choices directly."
_TRAINING = re.compile(r"(?<!s)train|Train|(?<!S)TRAIN")  # also train2014, training, MiniTrain; not constrained
_OTHERS = re.compile(r"(?<![a-z])(?:val|validation|dev|test[ab]?)(?![a-z])", re.IGNORECASE)


class Reader(Protocol):
    """Questions of the files that are for training, or of the others."""

    def __call__(self, folder: "Folder", *, train: bool) -> Iterator[Question]: ...


@dataclass
class Folder:
    """A benchmark's folder. Files with `train` in their name, or in that of a folder they lie in, are for shots, all others are asked.
    `beat` is called before each row and each file that is read whole: there may be very many, and a row may be a video."""

    store: Store
    beat: Callable[[], None] = lambda: None
    reading: str = ""  # the file that the last row came from

    @cached_property
    def files(self) -> list[str]:
        return annotation_files(self.store)

    @property
    def looked_at(self) -> str:
        return f"{len(self.files)} files: {', '.join(self.files[:5])}"

    def keys(self, *, train: bool) -> list[str]:
        return [key for key in self.files if is_training(key) == train]

    def rows(self, *needed: str, train: bool) -> Iterator[tuple[str, Row]]:
        """(where, row) of every row. Raises DataError that names the fields a row lacks."""
        return self.rows_in(self.keys(train=train), *needed)

    def rows_in(self, keys: Sequence[str], *needed: str) -> Iterator[tuple[str, Row]]:
        """`rows` of these files."""
        for key in keys:
            for number, row in rows_of(self.store, key):
                self.beat()
                self.reading = key
                lacking = [name for name in needed if name not in row]
                if lacking:
                    raise DataError(
                        f"{self.store.uri_of(key)}: row {number} has no field {', '.join(lacking)} (it has {', '.join(sorted(row))}); "
                        "take files that are not this benchmark's out of the folder"
                    )
                yield f"{key}:{number}", row

    def json(self, key: str) -> Any:
        """A JSON file as it is. Raises DataError."""
        self.beat()
        self.reading = key
        return whole_json(self.store, key)

    def image(self, row: Row, *names: str, column: str = "image", moved: bool = True) -> Picture:
        """The row's own image, or the first `file` of these names. Raises DataError that names what is missing."""
        own = row.get(column)
        if isinstance(own, InParquet):
            return own
        wanted = [str(own)] if isinstance(own, str) and own else []
        for name in (*wanted, *names):
            key = self.file(name, moved=moved)
            if key is not None:
                return InStore(self.store, key)
        told = " or ".join((*wanted, *names)) or f"in column {column}"
        raise DataError(f"{self.store.uri}: the image {told} is not there; put the benchmark's images into the folder")

    def file(self, name: str, *, moved: bool = True) -> str | None:
        """The key that is `name`, or else ends in it from a `/` on, or else (`moved`) ends in its bare name: images often lie elsewhere
        than the rows say. Raises DataError that names the files when several end so."""
        bare = name.rpartition("/")[2]
        found = self._by_ending.get(name) or (self._by_ending.get(bare) if moved else None) or []
        if len(found) > 1 and name not in found:
            raise DataError(
                f"{self.store.uri}: {name} may be any of {len(found)} files: {', '.join(found[:5])}{', …' if len(found) > 5 else ''}; "
                "take the others out of the folder, or keep its files in the folders that the benchmark has them in"
            )
        return name if name in found else next(iter(found), None)

    @cached_property
    def _by_ending(self) -> dict[str, list[str]]:
        """Keys by what they end in: `test/3/a.png` by itself, `3/a.png` and `a.png`."""
        found: dict[str, list[str]] = defaultdict(list)
        for key in sorted(info.key for info in self.store.list("")):
            parts = key.split("/")
            for first in range(len(parts)):
                found["/".join(parts[first:])].append(key)
        return dict(found)


def is_training(key: str) -> bool:
    """Is it a file of the training split? The innermost name in its path that tells a split decides: COCO's validation captions come in
    `annotations_trainval2014/annotations/captions_val2014.json`."""
    for name in reversed(key.split("/")):
        if _TRAINING.search(name):
            return True
        if _OTHERS.search(name):
            return False
    return False


def evaluation_split(key: str) -> str:
    """`val`, `testa`, ...: what the innermost name in its path that tells an evaluation split says; empty where none does."""
    found = (_OTHERS.search(name) for name in reversed(key.split("/")))
    return next((match[0].lower() for match in found if match), "")


def asked(*content: Content) -> tuple[Turn, ...]:
    """One user's turn."""
    return (Turn("user", tuple(content)),)


def text_of(value: Any) -> str:
    return "" if value is None else str(value).strip()


def texts_of(answers: Any) -> list[str]:
    """Of `"yes"`, `["yes", ...]`, `[{"answer": "yes"}, ...]` or `{"answer": ["yes", ...]}`. None when all are blank: splits whose answers
    are held back are filled so. A blank one among others stays, since VQA's official script counts all ten people."""
    answers = answers["answer"] if isinstance(answers, dict) else answers
    listed = [answers] if isinstance(answers, str) else answers or []
    found = [text_of(each["answer"] if isinstance(each, dict) else each) for each in listed]
    return found if any(found) else []


def lettered(options: list[str]) -> str:
    """`\\nA. ...\\nB. ...`"""
    return "".join(f"\n{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))


def letter(number: int) -> str:
    return chr(ord("A") + number)
