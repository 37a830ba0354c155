"""What a plan costs, in pure Python: parameters, FLOPs, memory, time. The trainer's MFU uses the same formulas."""

from stagecoach.costs.hardware import HARDWARE, Hardware, hardware
from stagecoach.costs.law import peak_lr, weight_decay
from stagecoach.costs.parameters import ParameterCount, Tensor, count_parameters, model_tensors
from stagecoach.costs.stage import StageCosts, advised_interval_s, stage_costs

__all__ = [
    "HARDWARE",
    "Hardware",
    "ParameterCount",
    "StageCosts",
    "Tensor",
    "advised_interval_s",
    "count_parameters",
    "hardware",
    "model_tensors",
    "peak_lr",
    "stage_costs",
    "weight_decay",
]
