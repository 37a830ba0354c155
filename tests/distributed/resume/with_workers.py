"""The trainer with its data loaded by worker processes, which a plan cannot ask for: threads are faster there. Entry point of a test."""

from functools import partial

from stagecoach_workloads.data.work import loader
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.testing.traced import main as traced


def main(context: RankContext) -> None:
    loader.WorkSettings = partial(loader.WorkSettings, workers=2)  # type: ignore[assignment,misc]
    traced(context)
