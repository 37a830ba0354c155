"""What a check finds, and what it looks at."""

from dataclasses import dataclass
from typing import Literal

from stagecoach.contract.records import Record
from stagecoach.launch.kube.client import Kube
from stagecoach.site import Site

Verdict = Literal["ok", "warning", "bad", "unknown"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact(Record):
    """One line. `unknown`: it could not be found out, which is no reason to stop."""

    check: str
    verdict: Verdict
    fact: str
    do: str = ""


@dataclass(frozen=True)
class Place:
    """What is examined. `kube` is None where no cluster is named and none is needed."""

    site: Site
    root: str
    kube: Kube | None
