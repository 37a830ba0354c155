"""A folder for runs, and a run in it over the fake launcher."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.launch import JobState, RunHandle
from stagecoach.contract.ledger import Runs
from stagecoach.stages.act import stop_run
from stagecoach.stages.control import request_of
from stagecoach.stages.pipeline import PipelineRequest, request_from
from stagecoach.testing.fake_launcher import FakeCluster, FakeLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import plain_stage, run_pipeline
from stagecoach_flows.surroundings import Outcome, Surroundings, surrounded


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


@dataclass
class World:
    """One run's root and cluster."""

    root: str
    corpus: str
    cluster: FakeCluster

    @property
    def runs(self) -> Runs:
        return Runs.open(self.root)

    def run(self, launcher: Any = None, **changes: Any) -> list[dict[str, Any]]:
        values: dict[str, Any] = {"recipe": "mm1_tiny", "root": self.root, "run_id": "toy", "data": self.corpus, "settings": TOY_SETTINGS}
        return self.go(Mm1Parameters(**{**values, **changes}), launcher)

    def go(self, parameters: Mm1Parameters, launcher: Any = None) -> list[dict[str, Any]]:
        with surrounded(self.surroundings(launcher)):
            return run_pipeline(parameters, run_one=plain_stage)

    def surroundings(self, launcher: Any = None) -> Surroundings:
        chosen = launcher or TrainingLauncher(self.cluster, Counter())
        return Surroundings(
            launcher=lambda _name, _ranks: chosen, evaluation=lambda *_: None, poll_s=0.0, retry_delays_s=(0.0, 0.0), outcome=Outcome()
        )

    def request(self, **changes: Any) -> PipelineRequest:
        """How `run` asked, with changes."""
        return replace(request_from(request_of(self.runs, "toy"), root=self.root, run_id="toy"), **changes)

    def resume(self, run_id: str) -> list[dict[str, Any]]:
        kept = request_from(request_of(self.runs, run_id), root=self.root, run_id=run_id)
        return self.go(
            Mm1Parameters(
                recipe=kept.recipe, root=kept.root, run_id=run_id, data=kept.data, settings=tuple(kept.settings), stages=tuple(kept.stages)
            )
        )


@pytest.fixture
def world(root: str, corpus: str) -> Iterator[World]:
    return World(root, corpus, FakeCluster())  # type: ignore[return-value]


class HeldWhileItRuns(FakeLauncher):
    """Somebody stops the run at the first look at its job."""

    def __init__(self, world: World, kind: Any, launcher: type[FakeLauncher] = FakeLauncher) -> None:
        super().__init__(world.cluster)
        self.world, self.kind, self.launcher, self.is_done = world, kind, launcher, False

    def describe(self, handle: RunHandle) -> JobState:
        if not self.is_done:
            self.is_done = True
            stop_run(self.world.runs, "toy", self.kind, launcher_of=lambda _: self.launcher(self.cluster), reason="lunch")
        return super().describe(handle)
