"""What people ask of a run after it began, and who watches it: objects beside `run.json` (interfaces.md section 1).

They are in the bucket, so that whoever comes later - another machine, the scheduled `resume` flow - does what was asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stagecoach.contract.plan import Count, WholeNumber
from stagecoach.contract.records import Stored


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest(Stored):
    """`request.json`: how the run was last asked for; enough to ask for it again. What decides the weights is frozen in each stage's
    `plan.json` all the same."""

    FORMAT = "stagecoach.request"

    recipe: str
    settings: tuple[str, ...] = ()
    data: str | None = None  # root of a made corpus
    launcher: str = "local"
    nodes: Count | None = None
    ranks_per_node: Count | None = None
    stages: tuple[str, ...] = ()  # empty: all
    from_checkpoint: str | None = None
    verify: Literal["quick", "full"] = "quick"
    code: str | None = None  # digest of the code bundle in `{root}/code/`
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold(Stored):
    """`control/pause.json` or `control/cancel.json`: nothing of the run is submitted while it is there."""

    FORMAT = "stagecoach.hold"

    kind: Literal["pause", "cancel"]
    by: str = ""  # user@host, for a person
    reason: str = ""
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerBeat(Stored):
    """`control/controller.json`: somebody watches the run and will do what comes next. Liveness is `beat` moving on the reader's clock."""

    FORMAT = "stagecoach.controller"

    controller: str  # host and process, for a person
    beat: WholeNumber
    stage: str
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeBundle(Stored):
    """`code/{digest}.json`: what a researcher's code bundle holds. The bundle itself is `code/{digest}.tar`."""

    FORMAT = "stagecoach.code"

    digest: str  # SHA-256 of the tar
    bytes: WholeNumber
    files: Mapping[str, str] = field(default_factory=dict)  # path -> SHA-256
    about: Mapping[str, Any] = field(default_factory=dict)
    at: str
