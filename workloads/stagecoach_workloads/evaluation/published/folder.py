"""The files of one benchmark, and what all readers share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from stagecoach.errors import DataError
from stagecoach.storage import Store
from stagecoach_workloads.data.samples import Content, Turn
from stagecoach_workloads.evaluation.published.rows import InParquet, InStore, Row, annotation_files, rows_of
from stagecoach_workloads.evaluation.question import Picture, Question

SHORT = "\nAnswer the question using a single word or phrase."  # as public evaluators ask fine-tuned models
LETTER = "\nAnswer with the option's letter from the given choices directly."


class Reader(Protocol):
    """Questions of the files that are for training, or of the others."""

    def __call__(self, folder: "Folder", *, train: bool) -> Iterator[Question]: ...


@dataclass
class Folder:
    """A benchmark's folder. Files with `train` in their name are for shots, all others are asked."""

    store: Store

    @cached_property
    def files(self) -> list[str]:
        return annotation_files(self.store)

    @property
    def looked_at(self) -> str:
        return f"{len(self.files)} files: {', '.join(self.files[:5])}"

    def keys(self, *, train: bool) -> list[str]:
        return [key for key in self.files if ("train" in key.rpartition("/")[2].lower()) == train]

    def rows(self, *needed: str, train: bool) -> Iterator[tuple[str, Row]]:
        """(where, row) of every row. Raises DataError that names the fields a row lacks."""
        for key in self.keys(train=train):
            for number, row in rows_of(self.store, key):
                lacking = [name for name in needed if name not in row]
                if lacking:
                    raise DataError(
                        f"{self.store.uri_of(key)}: row {number} has no field {', '.join(lacking)} (it has {', '.join(sorted(row))}); "
                        "is it a file of this benchmark?"
                    )
                yield f"{key}:{number}", row

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {info.key.rpartition("/")[2]: info.key for info in self.store.list("")}

    def image(self, row: Row, *names: str, column: str = "image") -> Picture:
        """The row's own image, or the file of that name anywhere in the folder. Raises DataError that names what is missing."""
        own = row.get(column)
        if isinstance(own, InParquet):
            return own
        wanted = [str(own)] if isinstance(own, str) and own else []
        for name in (*wanted, *names):
            key = self.file(name)
            if key is not None:
                return InStore(self.store, key)
        raise DataError(
            f"{self.store.uri}: the image {' or '.join((*wanted, *names))} is not there; put the benchmark's images into the folder"
        )

    def file(self, name: str) -> str | None:
        """The key of the file that is called so: its path below the folder, or its bare name."""
        return name if name in self._keys else self._by_name.get(name.rpartition("/")[2])

    @cached_property
    def _keys(self) -> set[str]:
        return set(self._by_name.values())


def asked(*content: Content) -> tuple[Turn, ...]:
    """One user's turn."""
    return (Turn("user", tuple(content)),)


def text_of(value: Any) -> str:
    return "" if value is None else str(value).strip()


def lettered(options: list[str]) -> str:
    """`\\nA. ...\\nB. ...`"""
    return "".join(f"\n{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))


def letter(number: int) -> str:
    return chr(ord("A") + number)
