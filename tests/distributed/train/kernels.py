"""The trainer with a block that takes a while on every rank, as a device's kernels do: many short waits, which a process that is held now
and then stretches as much as its work, and other users of this machine's processors do not. Entry point of a test."""

import time
from typing import Any

from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.train import run
from stagecoach_workloads.train.state import TrainState

KERNELS, KERNEL_S = 25, 0.002


def main(context: RankContext) -> None:
    """Trains."""
    build_state = run.build_state

    def slower(*arguments: Any, **named: Any) -> TrainState:
        state = build_state(*arguments, **named)
        block = state.model.decoder.blocks[0]
        forward = block.forward

        def with_kernels(*inputs: Any, **more: Any) -> Any:
            for _ in range(KERNELS):
                time.sleep(KERNEL_S)
            return forward(*inputs, **more)

        block.forward = with_kernels  # type: ignore[method-assign]
        return state

    run.build_state = slower
    run.run_stage(context)
