"""The trainer with its data loaded by worker processes, which a plan cannot ask for: threads are faster there. Entry point of a test."""

from functools import partial

from stagecoach_workloads.data.work.loader import WorkSettings
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.testing.traced import main as traced
from stagecoach_workloads.train import assemble


def main(context: RankContext) -> None:
    assemble.WorkSettings = partial(WorkSettings, workers=2)  # type: ignore[assignment,misc]
    traced(context)
