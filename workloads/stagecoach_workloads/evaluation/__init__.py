"""Evaluation as a job: a suite of questions, asked of a stage's final checkpoint by several ranks.

`suites.py` finds the questions (`made.py`: the made corpus; `published/`: benchmarks' own files), `prompts.py` makes prompts of them as
training does, `answering.py` asks, `segments.py` keeps the answers, `scores.py` and `metrics/` judge them, `run.py` is one rank's day.
"""

from stagecoach_workloads.rank import RankContext


def prepare() -> None:
    """Imports what `main` does, for a rank that waits (`stagecoach_workloads.warm`)."""
    import stagecoach_workloads.evaluation.run  # noqa: F401


def main(context: RankContext) -> None:
    """Leaves `answers/`, `samples/` and, last, `scores.json` in the job's folder. Raises what `run_evaluation` raises."""
    from stagecoach_workloads.evaluation.run import run_evaluation

    run_evaluation(context)
