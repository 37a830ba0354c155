"""One flow per stage, for a deployment or a schedule of its own. Each is a pipeline of one stage, and skips what is finished."""

from typing import Any

from prefect import Flow, flow

from stagecoach_flows.parameters import StageParameters
from stagecoach_flows.pipeline import run_as_flow

NAME = "{parameters.recipe}"


@flow(name="pretrain_stage", flow_run_name=NAME, persist_result=False)
def pretrain_stage(parameters: StageParameters) -> Any:
    """Pre-training from random or pre-trained parts."""
    return run_as_flow(parameters.only("pretrain"))


@flow(name="continual_stage", flow_run_name=NAME, persist_result=False)
def continual_stage(parameters: StageParameters) -> Any:
    """MM1.5's continual pre-training at high resolution, from the run's pre-training or --from-checkpoint."""
    return run_as_flow(parameters.only("continual"))


@flow(name="sft_stage", flow_run_name=NAME, persist_result=False)
def sft_stage(parameters: StageParameters) -> Any:
    """Supervised fine-tuning."""
    return run_as_flow(parameters.only("sft"))


@flow(name="video_stage", flow_run_name=NAME, persist_result=False)
def video_stage(parameters: StageParameters) -> Any:
    """Fine-tuning on video, from the fine-tuned model."""
    return run_as_flow(parameters.only("video"))


@flow(name="ui_stage", flow_run_name=NAME, persist_result=False)
def ui_stage(parameters: StageParameters) -> Any:
    """Fine-tuning on screens, from the fine-tuned model."""
    return run_as_flow(parameters.only("ui"))


STAGE_FLOWS: dict[str, Flow[..., Any]] = {
    "pretrain": pretrain_stage, "continual": continual_stage, "sft": sft_stage, "video": video_stage, "ui": ui_stage,
}  # fmt: skip
