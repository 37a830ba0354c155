"""One stage's costs: what `stagecoach plan` prints. No GPU, no torch."""

import math
from dataclasses import dataclass

from stagecoach.contract.plan import StagePlan
from stagecoach.costs.flops import StepFlops, step_flops
from stagecoach.costs.hardware import Hardware
from stagecoach.costs.load import StepLoad, image_tokens, stage_steps, step_load
from stagecoach.costs.memory import Memory, memory_per_rank, state_bytes
from stagecoach.costs.parameters import ParameterCount, count_parameters

READ_BYTES = 4 * 2**20  # one ranged read: a block of consecutive members (architecture.md section 5)
MASTER_AND_MOMENTS_BYTES = 12  # fp32 parameter and AdamW's two moments


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCosts:
    """Seconds, bytes and FLOPs; per step unless named otherwise, over all ranks unless named per GPU."""

    hardware: str
    mfu: float
    parameters: ParameterCount
    image_tokens: dict[str, int]
    steps: int
    load: StepLoad
    flops: StepFlops
    memory: Memory
    step_time_s: float
    gpu_hours: float
    input_bytes_per_s: float
    requests_per_s: float
    checkpoint_bytes: int
    save_stall_s: float
    save_time_s: float
    failure_interval_s: float
    advised_checkpoint_interval_s: float


def stage_costs(plan: StagePlan, machine: Hardware) -> StageCosts:
    """All of it, for one kind of machine."""
    load, flops, steps, ranks = step_load(plan), step_flops(plan), stage_steps(plan), plan.layout.ranks
    step_time_s = flops.total / (ranks * machine.peak_flops * machine.mfu)
    checkpoint_bytes = sum(state_bytes(plan, machine.compute_bytes).values())
    stall_s, save_s = save_times(checkpoint_bytes, plan, machine)
    failure_s = machine.hours_between_failures * 3600 / ranks
    return StageCosts(
        hardware=machine.name,
        mfu=machine.mfu,
        parameters=count_parameters(plan.model),
        image_tokens=image_tokens(plan.model),
        steps=steps,
        load=load,
        flops=flops,
        memory=memory_per_rank(plan, machine),
        step_time_s=step_time_s,
        gpu_hours=steps * step_time_s * ranks / 3600,
        input_bytes_per_s=load.bytes_read / step_time_s,
        requests_per_s=load.bytes_read / READ_BYTES / step_time_s,
        checkpoint_bytes=checkpoint_bytes,
        save_stall_s=stall_s,
        save_time_s=save_s,
        failure_interval_s=failure_s,
        advised_checkpoint_interval_s=max(advised_interval_s(stall_s, failure_s), 1.25 * save_s),
    )


def save_times(checkpoint_bytes: int, plan: StagePlan, machine: Hardware) -> tuple[float, float]:
    """(seconds that a step waits for staging to host memory, seconds until the commit): every rank stages its shard, every machine
    uploads its ranks' shards at once."""
    stall = checkpoint_bytes / (plan.layout.ranks * machine.device_to_host_bytes_per_s)
    return stall, stall + checkpoint_bytes / (plan.layout.nodes * machine.store_bytes_per_s)


def advised_interval_s(stall_s: float, failure_interval_s: float) -> float:
    """Young's and Daly's sqrt(2 x stall x mean time between failures): the interval that loses least. 0.25 s and 7.9 h give 2 min."""
    return math.sqrt(2 * stall_s * failure_interval_s)


def full_state_gb(parameters: ParameterCount) -> float:
    """fp32 parameters and two moments of the whole model, in GB of 1e9 bytes: the papers' models by one measure."""
    return parameters.total * MASTER_AND_MOMENTS_BYTES / 1e9
