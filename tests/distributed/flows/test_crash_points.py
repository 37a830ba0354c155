"""Every call of a pipeline to launcher, bucket and Prefect is a crash point: it dies there, is run again, and all is as if it had not died.

All of them, also those that only read, stage after stage and the evaluation between. Dying before a call is dying after the one before it:
in between nothing changes outside of the process.
"""

from collections.abc import Callable
from typing import Any

import pytest

from stagecoach.contract.ledger import Runs
from stagecoach.stages import StageResult
from stagecoach.testing.fake_launcher import Crashed, FakeCluster
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher, counted_store
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import Pipeline, plain_stage, run_pipeline
from stagecoach_flows.surroundings import Outcome, Surroundings, surrounded

CHANGES = ("publish", "create_if_absent", "launcher.submit", "launcher.describe", "prefect")
SETTINGS = (*(setting for setting in TOY_SETTINGS if setting != "sft.evaluation.suites=[]"), 'sft.evaluation.suites=["general"]')


def asked(root: str, corpus: str, **changes: Any) -> Mm1Parameters:
    values: dict[str, Any] = {"recipe": "mm1_tiny", "root": root, "run_id": "toy", "data": corpus, "settings": SETTINGS, **changes}
    return Mm1Parameters(**values)


def through(counter: Counter) -> Callable[[Pipeline, str], StageResult]:
    """Handing a stage to Prefect and taking its result back are calls too."""

    def run_one(pipeline: Pipeline, name: str) -> StageResult:
        result: StageResult = counter.call(f"prefect {name}", lambda: plain_stage(pipeline, name))
        return result

    return run_one


def run_once(parameters: Mm1Parameters, cluster: FakeCluster, counter: Counter) -> list[dict[str, Any]]:
    """One process's whole part."""
    around = Surroundings(
        launcher=lambda _name, _ranks: TrainingLauncher(cluster, counter), poll_s=0.0, retry_delays_s=(),
        outcome=Outcome(),
    )  # fmt: skip
    with counted_store(counter), surrounded(around):
        return run_pipeline(parameters, run_one=through(counter))


def told(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["stage"], one["weights_digest"], one["steps"], one["attempts"], list(one["evaluations"])) for one in results]


@pytest.mark.timeout(600)
def test_a_pipeline_killed_at_any_call_goes_on_with_one_job_per_stage_and_the_same_weights(tmp_path: Any, corpus: str) -> None:
    counter = Counter()
    undisturbed = told(run_once(asked(f"file://{tmp_path}/0", corpus), FakeCluster(), counter))
    last = len(counter.names)
    assert {name.split()[0] for name in counter.names} >= {"read", "list", *CHANGES}, counter.names
    for crash in (*(Counter(die_before=number) for number in range(1, last + 1)), Counter(die_after=last)):
        root, cluster = f"file://{tmp_path}/{crash.die_before}-{crash.die_after}", FakeCluster()
        with pytest.raises(Crashed):
            run_once(asked(root, corpus), cluster, crash)
        again = told(run_once(asked(root, corpus), cluster, Counter()))
        where = f"before call {crash.die_before}, {counter.names[crash.die_before - 1]}" if crash.die_before else "after the last call"
        assert again == undisturbed, where
        assert [job.starts for job in cluster.jobs.values()] == [1, 1, 1], where  # two stages and an evaluation
        runs = Runs.open(root)
        run = runs.run("toy")
        assert run is not None
        assert [len(runs.stage(run, stage).submissions()) for stage in run.stages] == [1, 1], where


def test_a_second_run_finds_everything_done_and_starts_nothing(root: str, corpus: str) -> None:
    cluster = FakeCluster()
    first = run_once(asked(root, corpus), cluster, Counter())
    second = run_once(asked(root, corpus), cluster, Counter())
    assert [one["was_done"] for one in first] == [False, False]
    assert [one["was_done"] for one in second] == [True, True]
    assert told(first) == told(second)
    assert len(cluster.jobs) == 3
