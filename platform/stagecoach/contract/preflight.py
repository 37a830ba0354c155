"""What a preflight is asked (`job.json` settings) and what it answers (`report.json` in the job's folder).

The report is stable: `"format": "stagecoach.preflight/1"`; fields are added, never renamed. Rates are decimal (GB = 1e9 bytes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stagecoach.contract.plan import Count, Fraction, NotNegative, Positive, WholeNumber
from stagecoach.contract.records import Record, Stored

SAID = 8  # problems in the verdict; `problems` has all of them
REPORT, PHASES = "report.json", "phases.json"
Check = Literal["present", "device", "matmul", "all_reduce", "clock", "memory", "disk", "shm", "bucket"]
Severity = Literal["broken", "slow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightSettings(Record):
    """How it measures and from where on something is wrong."""

    windows: Count = 7  # measurements of a rank in one round, taken in turn with the other ranks of its node
    window_s: Positive = 0.12
    rounds: Count = 3  # a rank is slow only when it is slow in every one of them; the first suffices where none is
    slow_below: Fraction = 0.7  # of the median of its peers
    matmul_size: Count | None = None  # None: 512 on CPU (fp32), 8192 on CUDA (bf16)
    min_of_peak: Fraction = 0.4  # of the device's peak in `stagecoach.costs.hardware`; on CUDA only
    all_reduce_mb: Positive | None = None  # None: 16 on CPU, 512 on CUDA
    min_all_reduce_gb_s: NotNegative = 0.0
    max_clock_skew_s: Positive = 2.0
    min_free_memory_gb: NotNegative = 0.5
    min_free_disk_gb: NotNegative = 1.0
    min_free_shm_gb: NotNegative = 0.0
    bucket_uri: str | None = None  # None: the job's own folder
    bucket_mb: Positive = 8.0
    min_bucket_mb_s: NotNegative = 0.0
    patience_s: Positive = 60.0  # how long a phase may take before a rank counts as missing from it


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReport(Record):
    """What the rank computes on."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_gb: NotNegative  # of the device; the machine's memory on CPU
    torch: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulReport(Record):
    """Square matrix products."""

    gflops: NotNegative  # GFLOP/s, median over all windows
    relative: NotNegative | None  # to the median of its peers, the best of its rounds; None without peers
    windows: tuple[tuple[float, ...], ...]  # GFLOP/s by round and window
    cpu_share: NotNegative  # CPU seconds per second while measuring: below 1 on CPU something else had the core
    size: Count
    dtype: str
    of_peak: NotNegative | None = None  # where the device is in the hardware table


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduceReport(Record):
    """Sum over all ranks. Bus bandwidth, as NCCL's tests print it: bytes * 2 (n - 1) / n / seconds; every rank sees the slowest."""

    gb_s: NotNegative
    mb: Positive
    backend: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockReport(Record):
    """Seconds this rank's clock is ahead (positive) of the median of all ranks, and of the bucket's server where it says its time."""

    skew_s: float | None = None
    bucket_skew_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceReport(Record):
    """Memory or a file system. `path` is None for memory."""

    free_gb: NotNegative
    total_gb: NotNegative
    path: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketReport(Record):
    """One object written and read by each rank, all at once; and one key that all ranks tried to create."""

    uri: str
    write_mb_s: NotNegative
    read_mb_s: NotNegative
    created: bool  # this rank won the conditional create: exactly one rank must


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure(Record):
    """A check that could not be done or came out wrong on this rank."""

    check: Check
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport(Record):
    """What one rank measured. A check that failed is None and stands in `failures`."""

    rank: WholeNumber
    node: WholeNumber
    local_rank: WholeNumber
    machine: str
    device: DeviceReport | None = None
    matmul: MatmulReport | None = None
    all_reduce: AllReduceReport | None = None
    clock: ClockReport | None = None
    memory: SpaceReport | None = None
    disk: SpaceReport | None = None
    shm: SpaceReport | None = None
    bucket: BucketReport | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem(Record):
    """Why it is not fit. `rank` None: all of them, or the job as a whole."""

    severity: Severity
    check: Check
    rank: WholeNumber | None = None
    node: WholeNumber | None = None
    machine: str | None = None
    says: str
    do: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightReport(Stored):
    """`report.json`, and what `stagecoach preflight --json` prints."""

    FORMAT = "stagecoach.preflight"

    name: str
    fit: bool
    verdict: str  # one line
    attempt: WholeNumber
    nodes: Count
    ranks_per_node: Count
    world_size: Count
    ranks: tuple[RankReport, ...] = ()  # in order; those that are missing are in `problems`
    problems: tuple[Problem, ...] = ()
    settings: PreflightSettings = PreflightSettings()
    seconds: NotNegative = 0.0  # of measuring, torch's import apart
    at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightPhases(Stored):
    """`phases.json`: what each rank is doing, for whoever watches."""

    FORMAT = "stagecoach.preflight-phases"

    phases: Mapping[str, str] = field(default_factory=dict)  # rank -> phase


def verdict_of(problems: Sequence[Problem], *, world_size: int) -> str:
    """One line: fit, or every slow or broken rank by number and machine."""
    if not problems:
        return f"fit: {world_size} rank{'s' if world_size > 1 else ''} checked, none slow, none broken"
    said = [f"{_who(problem)} {problem.severity} ({problem.check}): {problem.says}" for problem in problems]
    more = [f"and {len(said) - SAID} problems more"] if len(said) > SAID else []
    return "not fit: " + "; ".join(said[:SAID] + more)


def _who(problem: Problem) -> str:
    if problem.rank is None:
        return "every rank is" if problem.machine is None else f"every rank on {problem.machine} is"
    return f"rank {problem.rank}{f' on {problem.machine}' if problem.machine else ''} is"
