"""What a rank and its saving process say to each other: lines of JSON over a socket pair."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class SaverJob:
    """Who saves, and what every manifest of this attempt says. The first line."""

    kind: ClassVar[str] = "job"
    job_uri: str
    attempt: int
    rank: int
    world_size: int
    identity: str
    mesh: Mapping[str, int]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    keep: int
    keep_every_steps: int | None
    commit_deadline_s: float
    poll_s: float
    nice: int
    store: Mapping[str, Any]  # StoreSettings
    descriptor: int  # of the host buffer


@dataclass(frozen=True, kw_only=True)
class LayoutOrder:
    """Where objects and tensors lie from now on."""

    kind: ClassVar[str] = "layout"
    size: int
    objects: list[dict[str, Any]]  # name, start, size
    entries: list[dict[str, Any]]  # TensorEntry


@dataclass(frozen=True, kw_only=True)
class SaveOrder:
    """The buffer holds the state of `step`: write it. `skip`: this rank has nothing to write, and why."""

    kind: ClassVar[str] = "save"
    step: int
    shared: str = ""  # JSON
    own: str = ""
    skip: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the saving process says. kind: "phase" (text: its name), "committed", "skipped", "failed" (error, text: why), "idle"."""

    kind: str
    step: int
    text: str = ""
    error: str = ""  # type of the exception
    numbers: Mapping[str, float] = field(default_factory=dict)


def as_line(message: SaverJob | LayoutOrder | SaveOrder | Report) -> bytes:
    """One line. The kind of an order is its class's."""
    import json

    return json.dumps({"kind": message.kind, **asdict(message)}).encode() + b"\n"
