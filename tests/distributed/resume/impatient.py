"""The trainer, which takes a loader for stuck after two seconds instead of minutes. Entry point of a test."""

from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.train import feed
from stagecoach_workloads.train import main as train


def main(context: RankContext) -> None:
    feed.PATIENCE_S = 2.0
    train(context)
