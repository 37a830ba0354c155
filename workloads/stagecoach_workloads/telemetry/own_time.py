"""What a rank spends computing itself. Seconds of a whole step say nothing about it: all ranks wait for the slowest one."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class OwnTime:
    """Seconds inside the forward passes of `blocks`, the units of sharding, over which the load of a step is spread.

    FSDP gathers a block's weights before its `forward` is entered and gives them back after it, so waiting for other ranks stays outside;
    what activation checkpointing runs again counts. On a CUDA device it is the device's time, between two events on its stream.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Wraps every block's `forward`: call it after compiling and sharding."""
        self._on_device = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for block in blocks:
            block.forward = self._timed(block.forward)

    def take(self) -> float:
        """Seconds since the last call. On a CUDA device it waits for the work it measures: call it where the step's numbers are read."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        seconds = self._seconds
        self._seconds = 0.0
        self._events.clear()
        return seconds

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def on_cpu(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return forward(*arguments, **named)
            finally:
                self._seconds += time.perf_counter() - began

        def on_device(*arguments: Any, **named: Any) -> Any:
            begin, end = _event(), _event()
            begin.record()
            output = forward(*arguments, **named)
            end.record()
            self._events.append((begin, end))
            return output

        return on_device if self._on_device else on_cpu


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


def by_rank(*mine: float) -> list[list[float]]:
    """Each number as every rank has it, by rank: `seconds_by_rank, flops_by_rank = by_rank(own.take(), log.flops(batches))`.

    A collective of a few bytes, on the CPU."""
    values = torch.tensor(mine, dtype=torch.float64)
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered, dim=1).tolist()
