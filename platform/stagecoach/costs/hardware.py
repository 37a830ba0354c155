"""The machines a plan can be costed for. One entry is one rank's share of a machine.

Peak rates and sizes are the vendors'; the rest are stated assumptions, each with its source, and are what `stagecoach plan` divides by.
"""

from dataclasses import dataclass

from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One rank's device. Rates are per second, sizes in bytes (decimal, as vendors print them)."""

    name: str
    device: str
    peak_flops: float  # dense matmul in the compute dtype
    mfu: float  # the stated share of the peak that a step reaches; architecture.md section 11 has the budgets
    memory_bytes: float
    usable: float  # share of the memory a plan may take; the rest is the context, communication buffers and fragments
    compute_bytes: int  # of one value in the compute dtype: 2 bf16, 4 fp32
    ranks_per_node: int  # of one machine
    network_bytes_per_s: float  # per rank, between machines, as reached
    device_to_host_bytes_per_s: float  # per rank, pinned, as reached: what a step waits for when a checkpoint is staged
    store_bytes_per_s: float  # per machine, to object storage, multipart, as reached
    hours_between_failures: float  # of one device and its share of the machine


# 1,024-GPU jobs fail every 7.9 h (Kokolis et al. 2024, arXiv:2410.21680): one GPU and its share of a machine in 8,090 h.
_GPU_HOURS_BETWEEN_FAILURES = 7.9 * 1024

HARDWARE = {
    "h100": Hardware(
        name="h100",
        device="NVIDIA H100 SXM 80 GB, bf16",
        peak_flops=989e12,
        mfu=0.40,
        memory_bytes=80e9,
        usable=0.92,
        compute_bytes=2,
        ranks_per_node=8,
        network_bytes_per_s=35e9,  # 400 Gb/s per GPU at 70 %
        device_to_host_bytes_per_s=20e9,  # PCIe 5 x16, eight GPUs at once
        store_bytes_per_s=2e9,  # 25 Gb/s of a machine's front network at 65 %
        hours_between_failures=_GPU_HOURS_BETWEEN_FAILURES,
    ),
    "h200": Hardware(
        name="h200",
        device="NVIDIA H200 SXM 141 GB, bf16",
        peak_flops=989e12,
        mfu=0.40,
        memory_bytes=141e9,
        usable=0.92,
        compute_bytes=2,
        ranks_per_node=8,
        network_bytes_per_s=35e9,
        device_to_host_bytes_per_s=20e9,
        store_bytes_per_s=2e9,
        hours_between_failures=_GPU_HOURS_BETWEEN_FAILURES,
    ),
    "cpu": Hardware(
        name="cpu",
        device="one x86 core with AVX-512, fp32",
        peak_flops=90e9,  # measured: 77-92 GFLOP/s in 2,048-row matmuls of width 128-1,024 on the machine the miniatures are made for
        mfu=0.20,
        memory_bytes=4e9,
        usable=0.80,
        compute_bytes=4,
        ranks_per_node=2,
        network_bytes_per_s=1e9,
        device_to_host_bytes_per_s=5e9,
        store_bytes_per_s=2e8,
        hours_between_failures=_GPU_HOURS_BETWEEN_FAILURES,
    ),
}


def hardware(name: str) -> Hardware:
    """The entry of that name. Raises ConfigError with the nearest one when there is none."""
    if name not in HARDWARE:
        raise ConfigError(f"--hardware {name!r} is not known{did_you_mean(name, list(HARDWARE))}")
    return HARDWARE[name]
