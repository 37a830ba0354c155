"""Parameters of flows: checked before a run starts, and a form in Prefect's UI."""

import subprocess
import sys
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from stagecoach.stages.pipeline import PipelineRequest
from stagecoach_flows.parameters import Mm1Parameters, Mm15Parameters, StageParameters, parameters_of, recipes_of
from stagecoach_flows.pipelines import PIPELINES
from stagecoach_flows.stage_flows import STAGE_FLOWS


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recipe": "mm1_5_tiny"}, "no recipe of this pipeline"),
        ({"run_id": "Not A Name"}, "try 'not-a-name'"),
        ({"root": "memory://x"}, "which no job can see"),
        ({"data": "gopher://x"}, "gopher"),
        ({"settings": ("steps",)}, "write PATH=VALUE"),
        ({"nodes": 0}, "greater than or equal to 1"),
        ({"verify": "never"}, "'quick' or 'full'"),
        ({"code": "abc"}, "pattern"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as told:
        Mm1Parameters(**{"recipe": "mm1_tiny", **wrong})
    assert says in str(told.value)
    assert next(iter(wrong)) in str(told.value)


def test_a_request_becomes_parameters_and_the_same_request_again() -> None:
    request = PipelineRequest(
        recipe="mm1_5_tiny", root="file:///r", run_id="a", settings=("sft.steps=5",), data="file:///d", nodes=2, ranks_per_node=1,
        stages=("sft",), from_checkpoint="file:///c", depth="full", code="ab" * 32,
    )  # fmt: skip
    parameters = parameters_of(request, "mm1_5")
    assert isinstance(parameters, Mm15Parameters)
    assert parameters.request() == request
    assert Mm15Parameters.model_validate_json(parameters.model_dump_json()) == parameters


def test_a_run_without_an_id_takes_the_one_of_its_flow_run() -> None:
    parameters = Mm1Parameters(recipe="mm1_tiny", root="file:///r")
    assert parameters.request(run_id="mm1-tiny-1").run_id == "mm1-tiny-1"
    assert Mm1Parameters(recipe="mm1_tiny", run_id="mine").request(run_id="other").run_id == "mine"


@pytest.mark.parametrize("family", sorted(PIPELINES))
def test_the_form_offers_the_familys_recipes_and_explains_each_field(family: str) -> None:
    schema = parameter_schema(PIPELINES[family].fn)
    (form,) = schema.definitions.values()
    assert form["properties"]["recipe"]["enum"] == recipes_of(family)
    assert all(field.get("title") for field in form["properties"].values())
    assert all(field.get("description") for name, field in form["properties"].items() if name != "recipe")


def test_each_stage_has_a_flow_of_its_own_name() -> None:
    assert {stage: one.name for stage, one in STAGE_FLOWS.items()} == {stage: f"{stage}_stage" for stage in STAGE_FLOWS}
    assert StageParameters(recipe="mm1_tiny", stages=("pretrain", "sft")).only("sft").stages == ("sft",)


def test_the_commands_are_imported_without_prefect() -> None:
    told = "import sys, stagecoach_flows.cli; sys.exit('prefect' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
