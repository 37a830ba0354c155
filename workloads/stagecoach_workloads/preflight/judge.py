"""Which rank is slow and which is broken. Pure: from measurements and thresholds to problems."""

from collections.abc import Mapping, Sequence
from statistics import median

from stagecoach.contract.preflight import Check, PreflightSettings, Problem, RankReport, Severity, SpaceReport

Round = Mapping[int, Sequence[float]]  # rank -> rates, one per window; windows of the same index were taken near each other in time

REMEDIES: dict[Check, str] = {
    "present": "look at `stagecoach logs` for that rank, and keep its machine out of the job",
    "device": "keep that machine out of the job, and look at its driver and its kernel log",
    "matmul": "look for what else runs there, for heat or a power limit, and keep the machine out of the job until it is found",
    "all_reduce": "check the network between the machines (interface, firewall, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME)",
    "clock": "run a time service (chrony, ntpd) on that machine",
    "memory": "free memory on that machine, or ask for more per rank",
    "disk": "free that disk, or give the pod a larger emptyDir",
    "shm": "give the pod a larger /dev/shm (an emptyDir with medium: Memory)",
    "bucket": "check the bucket's name, its policy (get, put, delete and list are needed) and the credentials of this job",
}


def relative_speeds(rates: Round) -> dict[int, float]:
    """Each rank's rate over the median of its peers', the median of that over the windows. Empty with fewer than two ranks.

    Comparing window by window takes out whatever slows everybody for a while; the median takes out a window that something disturbed.
    """
    relative = {}
    for rank, mine in rates.items():
        peers = [theirs for other, theirs in rates.items() if other != rank]
        if peers and mine:
            ratios = [rate / max(median(their[window] for their in peers), 1e-9) for window, rate in enumerate(mine)]
            relative[rank] = median(ratios)
    return relative


def suspects(rounds: Sequence[Round], slow_below: float) -> list[int]:
    """Ranks that were slow in every round so far."""
    slow = [{rank for rank, speed in relative_speeds(rates).items() if speed < slow_below} for rates in rounds]
    return sorted(set.intersection(*slow)) if slow else []


def best_relative(rounds: Sequence[Round], rank: int) -> float | None:
    """The relative speed in its best round: below the limit only when it was below it in all."""
    return max((speeds[rank] for rates in rounds if rank in (speeds := relative_speeds(rates))), default=None)


def judge(reports: Sequence[RankReport], settings: PreflightSettings, *, missing: Mapping[int, str], ranks_per_node: int) -> list[Problem]:
    """Every problem: missing ranks first, then by rank. `missing`: rank -> the phase it did not reach."""
    machines = {report.node: report.machine for report in reports}
    problems = [
        Problem(
            severity="broken", check="present", rank=rank, node=rank // ranks_per_node, machine=machines.get(rank // ranks_per_node),
            says=f"it did not come through {phase} within {settings.patience_s:g} s", do=REMEDIES["present"],
        )
        for rank, phase in sorted(missing.items())
    ]  # fmt: skip
    for report in sorted(reports, key=lambda report: report.rank):
        # Where a rank is missing, what the others say of all-reduce follows from that.
        failures = [failure for failure in report.failures if not (missing and failure.check == "all_reduce")]
        problems += [_problem("broken", failure.check, report, failure.says) for failure in failures]
        problems += _of_matmul(report, settings) + _of_space(report, settings) + _of_clock(report, settings) + _of_rates(report, settings)
    return problems + _of_creation(reports, missing)


def _of_matmul(report: RankReport, settings: PreflightSettings) -> list[Problem]:
    matmul = report.matmul
    if matmul is None:
        return []
    if matmul.relative is not None and matmul.relative < settings.slow_below:
        starved = report.device is not None and report.device.kind == "cpu" and matmul.cpu_share < settings.slow_below
        share = f", it had {matmul.cpu_share:.0%} of a core" if starved else ""
        says = f"{matmul.gflops:,.1f} GFLOP/s, {matmul.relative:.0%} of the median of its peers (limit {settings.slow_below:.0%}){share}"
        return [_problem("slow", "matmul", report, says)]
    is_cuda = report.device is not None and report.device.kind == "cuda"
    if is_cuda and matmul.of_peak is not None and matmul.of_peak < settings.min_of_peak:
        says = f"{matmul.gflops:,.0f} GFLOP/s, {matmul.of_peak:.0%} of the device's peak (limit {settings.min_of_peak:.0%})"
        return [_problem("slow", "matmul", report, says)]
    return []


def _of_space(report: RankReport, settings: PreflightSettings) -> list[Problem]:
    limits: list[tuple[Check, SpaceReport | None, float]] = [
        ("memory", report.memory, settings.min_free_memory_gb),
        ("disk", report.disk, settings.min_free_disk_gb),
        ("shm", report.shm, settings.min_free_shm_gb),
    ]
    return [
        _problem("broken", check, report, f"{space.free_gb:.2f} GB free{f' on {space.path}' if space.path else ''}, {limit:g} GB needed")
        for check, space, limit in limits
        if space is not None and space.free_gb < limit
    ]


def _of_clock(report: RankReport, settings: PreflightSettings) -> list[Problem]:
    clock, limit = report.clock, settings.max_clock_skew_s
    if clock is None:
        return []
    for skew, against in ((clock.skew_s, "the median of all ranks"), (clock.bucket_skew_s, "the bucket's server")):
        if skew is not None and abs(skew) > limit:
            says = f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} {against} (limit {limit:g} s)"
            return [_problem("broken", "clock", report, says)]
    return []


def _of_rates(report: RankReport, settings: PreflightSettings) -> list[Problem]:
    problems = []
    if report.all_reduce is not None and report.all_reduce.gb_s < settings.min_all_reduce_gb_s:
        says = f"{report.all_reduce.gb_s:.3g} GB/s, {settings.min_all_reduce_gb_s:g} GB/s needed"
        problems.append(_problem("slow", "all_reduce", report, says))
    if report.bucket is not None:
        slowest = min(report.bucket.write_mb_s, report.bucket.read_mb_s)
        if slowest < settings.min_bucket_mb_s:
            problems.append(_problem("slow", "bucket", report, f"{slowest:.3g} MB/s, {settings.min_bucket_mb_s:g} MB/s needed"))
    return problems


def _of_creation(reports: Sequence[RankReport], missing: Mapping[int, str]) -> list[Problem]:
    """All ranks tried to create one object: exactly one may have won, or attempts could be claimed twice."""
    tried = [report for report in reports if report.bucket is not None]
    winners = [report.rank for report in tried if report.bucket is not None and report.bucket.created]
    if len(winners) > 1:
        says = f"ranks {', '.join(map(str, winners))} all created the same object: this store has no conditional create"
    elif not winners and len(tried) == len(reports) and tried and not missing:
        says = "no rank could create an object that was not there"
    else:
        return []
    return [Problem(severity="broken", check="bucket", says=says, do="use a store with conditional writes (If-None-Match)")]


def _problem(severity: Severity, check: Check, report: RankReport, says: str) -> Problem:
    return Problem(
        severity=severity, check=check, rank=report.rank, node=report.node, machine=report.machine, says=says, do=REMEDIES[check]
    )
