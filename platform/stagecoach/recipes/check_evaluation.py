"""Checks what a stage is to be asked when it is trained: a name that is no suite is found before the training, not after it."""

from collections.abc import Iterator

from stagecoach.contract.evaluation import KNOWN_SUITES
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import did_you_mean
from stagecoach.recipes.findings import Finding

PATH = "evaluation.suites"


def findings(stage: StagePlan) -> Iterator[Finding]:
    """Everything wrong with the suites. Published ones are known, and passed over with a warning when the stage ends."""
    names = stage.evaluation.suites
    for name in dict.fromkeys(names):
        if name in KNOWN_SUITES:
            continue
        if "+" in name:
            yield Finding("error", PATH, f"{name!r} is several suites in one entry", "give each suite an entry of its own")
        else:
            hint = did_you_mean(name.lower().replace("-", "_"), KNOWN_SUITES)
            yield Finding("error", PATH, f"{name!r} is not a suite that can be asked{hint}", "name one that is there, or leave it away")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding("warning", PATH, f"{name!r} is named twice, and asked once", "keep one")
