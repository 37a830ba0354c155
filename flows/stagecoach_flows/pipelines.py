"""The pipelines: MM1, MM1.5 and xGen-MM (BLIP-3). Order comes from the recipe; what is special to a paper is in the recipe too."""

from typing import Any

from prefect import Flow, flow

from stagecoach_flows.parameters import Blip3Parameters, Mm1Parameters, Mm15Parameters
from stagecoach_flows.pipeline import run_as_flow


@flow(name="mm1_pipeline", flow_run_name="{parameters.recipe}", persist_result=False)
def mm1_pipeline(parameters: Mm1Parameters) -> Any:
    """MM1: pre-training on captions, interleaved documents and text, then supervised fine-tuning."""
    return run_as_flow(parameters)


@flow(name="mm1_5_pipeline", flow_run_name="{parameters.recipe}", persist_result=False)
def mm1_5_pipeline(parameters: Mm15Parameters) -> Any:
    """MM1.5: pre-training, continual pre-training at high resolution, fine-tuning; video and UI each start from the fine-tuned model."""
    return run_as_flow(parameters)


@flow(name="blip3_pipeline", flow_run_name="{parameters.recipe}", persist_result=False)
def blip3_pipeline(parameters: Blip3Parameters) -> Any:
    """xGen-MM (BLIP-3). Interleaved and preference tuning are refused when the run is planned, until they are built."""
    return run_as_flow(parameters)


PIPELINES: dict[str, Flow[..., Any]] = {"mm1": mm1_pipeline, "mm1_5": mm1_5_pipeline, "blip3": blip3_pipeline}
