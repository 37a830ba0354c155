"""Who is slow and who is broken, from numbers: noise does not flag, a throttle does."""

import random
from typing import Any

import pytest

from stagecoach.contract.preflight import (
    BucketReport,
    ClockReport,
    DeviceReport,
    Failure,
    MatmulReport,
    PreflightSettings,
    RankReport,
    SpaceReport,
    verdict_of,
)
from stagecoach_workloads.preflight.judge import best_relative, judge, relative_speeds, suspects
from stagecoach_workloads.preflight.together import clock_skews


def a_rank(number: int, **facts: Any) -> RankReport:
    return RankReport(rank=number, node=number // 2, local_rank=number % 2, machine=f"gpu-{number // 2}", **facts)


def a_matmul(relative: float | None, *, cpu_share: float = 1.0, of_peak: float | None = None) -> MatmulReport:
    return MatmulReport(gflops=50.0, relative=relative, windows=(), cpu_share=cpu_share, size=512, dtype="float32", of_peak=of_peak)


CUDA = DeviceReport(kind="cuda", name="NVIDIA H200", memory_gb=141, torch="2.13")
CPU = DeviceReport(kind="cpu", name="AMD EPYC", memory_gb=16, torch="2.13")


def test_a_rank_is_compared_with_its_peers_window_by_window() -> None:
    # everybody is slow in the second window: that says nothing of anyone
    assert relative_speeds({0: [100, 10, 100], 1: [90, 9, 90], 2: [50, 5, 50]}) == pytest.approx({0: 100 / 70, 1: 1.2, 2: 50 / 95})


def test_a_rank_without_peers_is_not_compared() -> None:
    assert relative_speeds({0: [100.0]}) == {}
    assert best_relative([{0: [100.0]}], 0) is None


def test_slow_once_is_a_suspicion_and_slow_in_every_round_is_slow() -> None:
    slow, fine = {0: [100] * 5, 1: [100] * 5, 2: [40] * 5}, {0: [100] * 5, 1: [100] * 5, 2: [95] * 5}
    assert suspects([slow], 0.7) == [2]
    assert suspects([slow, fine], 0.7) == []
    assert suspects([slow, slow, slow], 0.7) == [2]
    assert best_relative([slow, fine], 2) == pytest.approx(0.95)


def test_a_busy_machine_flags_nobody_and_a_throttle_among_the_noise_is_found() -> None:
    """1,000 preflights of 4 ranks; a neighbour takes half of a core in a third of all windows, and rank 1 may be held to 40 %."""
    chance = random.Random(0)

    def a_round(throttle: float) -> dict[int, list[float]]:
        def rate(rank: int) -> float:
            return 80 * chance.gauss(1, 0.05) * (0.5 if chance.random() < 1 / 3 else 1) * (throttle if rank == 1 else 1)

        return {rank: [rate(rank) for _ in range(PreflightSettings().windows)] for rank in range(4)}

    def flagged(throttle: float) -> list[int]:
        rounds: list[dict[int, list[float]]] = []
        for _ in range(3):
            rounds.append(a_round(throttle))
            if not suspects(rounds, 0.7):
                break
        return suspects(rounds, 0.7)

    false_alarms = sum(bool(flagged(1.0)) for _ in range(1000))
    found = sum(flagged(0.4) == [1] for _ in range(1000))
    assert false_alarms <= 10
    assert found >= 950


def test_every_kind_of_problem_is_named_with_rank_and_machine() -> None:
    settings = PreflightSettings(min_free_memory_gb=4, min_free_disk_gb=10, min_free_shm_gb=1, min_bucket_mb_s=100)
    reports = [
        a_rank(0, device=CPU, matmul=a_matmul(1.0), clock=ClockReport(skew_s=0.001), memory=SpaceReport(free_gb=8, total_gb=16)),
        a_rank(1, device=CPU, matmul=a_matmul(0.31, cpu_share=0.3), clock=ClockReport(skew_s=-4.25)),
        a_rank(2, device=CUDA, matmul=a_matmul(0.99, of_peak=0.2), clock=ClockReport(skew_s=0.1, bucket_skew_s=900.5)),
        a_rank(3, failures=(Failure(check="bucket", says="s3://b: 403"),), disk=SpaceReport(free_gb=2, total_gb=9, path="/x")),
        a_rank(4, memory=SpaceReport(free_gb=1, total_gb=2), shm=SpaceReport(free_gb=0.06, total_gb=0.06, path="/dev/shm")),
        a_rank(5, bucket=BucketReport(uri="s3://b", write_mb_s=200, read_mb_s=50, created=True)),
    ]
    problems = judge(reports, settings, missing={6: "matmul (round 1)"}, ranks_per_node=2)
    assert [(problem.severity, problem.check, problem.rank, problem.machine, problem.says) for problem in problems] == [
        ("broken", "present", 6, None, "it did not come through matmul (round 1) within 60 s"),
        ("slow", "matmul", 1, "gpu-0", "50.0 GFLOP/s, 31% of the median of its peers (limit 70%), it had 30% of a core"),
        ("broken", "clock", 1, "gpu-0", "its clock is 4.2 s behind the median of all ranks (limit 2 s)"),
        ("slow", "matmul", 2, "gpu-1", "50 GFLOP/s, 20% of the device's peak (limit 40%)"),
        ("broken", "clock", 2, "gpu-1", "its clock is 900.5 s ahead of the bucket's server (limit 2 s)"),
        ("broken", "bucket", 3, "gpu-1", "s3://b: 403"),
        ("broken", "disk", 3, "gpu-1", "2.00 GB free on /x, 10 GB needed"),
        ("broken", "memory", 4, "gpu-2", "1.00 GB free, 4 GB needed"),
        ("broken", "shm", 4, "gpu-2", "0.06 GB free on /dev/shm, 1 GB needed"),
        ("slow", "bucket", 5, "gpu-2", "50 MB/s, 100 MB/s needed"),
    ]
    assert all(problem.do for problem in problems)


def test_nothing_wrong_is_fit() -> None:
    assert judge([a_rank(0, matmul=a_matmul(None))], PreflightSettings(), missing={}, ranks_per_node=1) == []
    assert verdict_of([], world_size=1) == "fit: 1 rank checked, none slow, none broken"


def test_all_reduce_of_the_others_is_not_blamed_when_a_rank_is_missing() -> None:
    failed = a_rank(0, failures=(Failure(check="all_reduce", says="timed out"),))
    assert [problem.check for problem in judge([failed], PreflightSettings(), missing={1: "all-reduce"}, ranks_per_node=2)] == ["present"]
    assert [problem.check for problem in judge([failed], PreflightSettings(), missing={}, ranks_per_node=2)] == ["all_reduce"]


@pytest.mark.parametrize(
    ("winners", "says"), [((0, 1), "ranks 0, 1 all created the same object"), ((), "no rank could create"), ((1,), None)]
)
def test_exactly_one_rank_may_win_the_conditional_create(winners: tuple[int, ...], says: str | None) -> None:
    reports = [a_rank(n, bucket=BucketReport(uri="s3://b", write_mb_s=1, read_mb_s=1, created=n in winners)) for n in range(2)]
    problems = judge(reports, PreflightSettings(), missing={}, ranks_per_node=2)
    assert [says in problem.says for problem in problems if says] == ([True] if says else [])
    assert bool(problems) == bool(says)


def test_clock_skew_is_against_the_median_and_ignores_one_late_reading() -> None:
    readings = {0: [100.0, 200.0, 300.0], 1: [100.01, 200.0, 300.5], 2: [107.0, 207.0, 307.0]}
    assert clock_skews(readings) == pytest.approx({0: 0.0, 1: 0.0, 2: 7.0}, abs=0.02)
