"""The trainer. A stage's ranks run `stagecoach_workloads.train:main`; it reads plan.json and nothing else."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagecoach_workloads.rank import RankContext


def prepare() -> None:
    """Imports what `main` does, for a rank that waits (`stagecoach_workloads.warm`)."""
    import stagecoach_workloads.train.run  # noqa: F401


def main(context: "RankContext") -> None:
    """Trains the stage of this job to its last step, or goes on from its newest checkpoint. See `run.py`."""
    from stagecoach_workloads.train.run import run_stage

    run_stage(context)
