"""What ranks measure with collectives: the bandwidth of all-reduce, and their clocks at one moment."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from stagecoach.contract.preflight import AllReduceReport

REPEATS = 5


def join_group(store: Store, *, rank: int, world_size: int, device: torch.device, timeout_s: float) -> None:
    """Opens the default process group: NCCL on CUDA, gloo on CPU. Raises what torch.distributed raises."""
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )


def measure_all_reduce(device: torch.device, megabytes: float | None) -> AllReduceReport:
    """Median of REPEATS sums over all ranks. Raises RuntimeError when a sum is wrong."""
    world_size, size_mb = dist.get_world_size(), megabytes or (512.0 if device.type == "cuda" else 16.0)
    values = torch.ones(max(1, int(size_mb * 1e6 / 4)), device=device)
    _timed_all_reduce(values)  # opens the connections
    seconds = []
    for _ in range(REPEATS):
        values.fill_(1.0)
        seconds.append(_timed_all_reduce(values))
        wrong = int((values != world_size).sum())
        if wrong:
            raise RuntimeError(f"all-reduce gave {wrong} wrong sums of {values.numel()}: the network or a device changes data")
    bus_bytes = values.numel() * 4 * 2 * (world_size - 1) / world_size
    return AllReduceReport(gb_s=round(bus_bytes / median(seconds) / 1e9, 4), mb=size_mb, backend=str(dist.get_backend()))


def clock_readings(device: torch.device) -> list[float]:
    """This rank's clock at REPEATS moments, each just after all ranks have met."""
    one, readings = torch.ones(1, device=device), []
    for _ in range(REPEATS):
        _timed_all_reduce(one)
        readings.append(time.time())
    return readings


def clock_skews(readings: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Seconds each rank's clock is ahead of the median of all, the median over the moments."""
    count = min(len(times) for times in readings.values())
    middles = [median(times[moment] for times in readings.values()) for moment in range(count)]
    return {rank: round(median(times[moment] - middles[moment] for moment in range(count)), 4) for rank, times in readings.items()}


def _timed_all_reduce(values: torch.Tensor) -> float:
    """Seconds of one all-reduce that all ranks begin together."""
    dist.barrier()
    _synchronize(values)
    start = time.perf_counter()
    dist.all_reduce(values)
    _synchronize(values)
    return time.perf_counter() - start


def _synchronize(values: torch.Tensor) -> None:
    if values.device.type == "cuda":
        torch.cuda.synchronize(values.device)
