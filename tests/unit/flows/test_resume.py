"""The scheduled `resume` flow: every abandoned run is taken up once, through its deployment where there is one, else in this process."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Failed, Running

from stagecoach.contract.ledger import Runs
from stagecoach.site import Site
from stagecoach.stages.control import Control
from stagecoach.stages.pipeline import PipelineRequest, prepare_pipeline, record_pipeline
from stagecoach.testing.flow_world import TOY_SETTINGS
from stagecoach_flows import resume as module
from stagecoach_flows.parameters import Mm1Parameters, ResumeParameters
from stagecoach_flows.pipelines import PIPELINES
from stagecoach_flows.resume import MOST_CRASHES, resume


@pytest.fixture
def abandoned(root: str, corpus: str) -> Callable[[str], None]:
    """Makes a run that was asked for and that nobody watches."""

    def make(run_id: str) -> None:
        asked = PipelineRequest(recipe="mm1_tiny", root=root, run_id=run_id, data=corpus, settings=TOY_SETTINGS, stages=("pretrain",))
        record_pipeline(prepare_pipeline(asked, Site()))

    return make


class Deployments:
    """A server's: the same key again gives the flow run that it gave before, in the state in which that is now."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, FlowRun] = {}
        self.asked: list[dict[str, Any]] = []
        patch.setattr(module, "run_deployment", self.run)

    def run(self, name: str, *, parameters: dict[str, Any], timeout: float, as_subflow: bool, idempotency_key: str) -> FlowRun:
        assert (timeout, as_subflow) == (0, False)  # it neither waits for the run nor dies with it
        self.asked.append({"name": name, **parameters["parameters"]})
        state: State[Any] = Running()
        return self.runs.setdefault(idempotency_key, FlowRun(id=uuid4(), flow_id=uuid4(), state=state))

    def now(self, key: str, state: State[Any]) -> None:
        self.runs[key] = self.runs[key].model_copy(update={"state": state})


@pytest.fixture
def deployments(monkeypatch: pytest.MonkeyPatch) -> Deployments:
    return Deployments(monkeypatch)


def visit(root: str, **changes: Any) -> list[str]:
    return resume.fn(ResumeParameters(root=root, watch_s=0, **changes))


def test_each_abandoned_run_is_started_as_it_was_asked_for_and_only_once(
    root: str, corpus: str, abandoned: Callable[[str], None], deployments: Deployments
) -> None:
    abandoned("one")
    abandoned("two")
    assert visit(root) == ["one", "two"]
    assert {(told["name"], told["run_id"]) for told in deployments.asked} == {
        ("mm1_pipeline/stagecoach", "one"),
        ("mm1_pipeline/stagecoach", "two"),
    }
    asked = Mm1Parameters(**{key: value for key, value in deployments.asked[0].items() if key != "name"})
    assert (asked.root, asked.data, asked.stages, asked.settings) == (root, corpus, ("pretrain",), TOY_SETTINGS)
    visit(root)  # no worker has taken them yet
    assert len(deployments.runs) == 2
    assert visit(root, run_id="two") == ["two"]


def test_a_controller_that_crashed_before_its_first_beat_is_followed_by_another_and_a_failed_one_is_not(
    root: str, abandoned: Callable[[str], None], deployments: Deployments
) -> None:
    abandoned("one")
    for number in range(3):
        assert visit(root) == ["one"]
        assert len(deployments.runs) == number + 1
        deployments.now([*deployments.runs][-1], Crashed())
    visit(root)
    deployments.now([*deployments.runs][-1], Failed(message="the tokenizer was replaced"))
    visit(root)
    assert len(deployments.runs) == 4
    for _ in range(MOST_CRASHES):
        deployments.now([*deployments.runs][-1], Crashed())
        told = visit(root)
    assert (len(deployments.runs), told) == (MOST_CRASHES, [])  # somebody must look


def test_without_a_deployment_it_runs_here_and_one_runs_trouble_is_not_the_others(
    root: str, abandoned: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned("bad")
    abandoned("good")
    Runs.open(root).store.publish("runs/torn/run.json", b"{")
    ran: list[str] = []

    def not_there(*_: Any, **__: Any) -> None:
        raise ObjectNotFound(Exception("no deployment"))

    class Pipeline:
        name = "mm1_pipeline"

        def __call__(self, parameters: Mm1Parameters) -> None:
            if parameters.run_id == "bad":
                raise RuntimeError("this one fails")
            ran.append(str(parameters.run_id))

    monkeypatch.setattr(module, "run_deployment", not_there)
    monkeypatch.setitem(PIPELINES, "mm1", Pipeline())
    assert visit(root) == ["good"]
    assert ran == ["good"]


def test_what_is_held_finished_or_was_never_asked_for_is_left_alone(
    root: str, abandoned: Callable[[str], None], deployments: Deployments
) -> None:
    abandoned("held")
    Control(Runs.open(root), "held").hold("pause", "lunch")
    abandoned("silent")
    Runs.open(root).store.delete("runs/silent/request.json")
    assert visit(root) == []
    assert deployments.asked == []
