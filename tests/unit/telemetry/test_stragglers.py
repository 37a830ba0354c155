"""Slow ranks by planned against measured time: how often it is wrong, and how soon it is right."""

import numpy as np

from stagecoach_workloads.telemetry.stragglers import WINDOW_STEPS, WINDOWS, Stragglers

RANKS, STEPS, RUNS = 8, 300, 400


def simulate(seed: int, *, slow: int | None = None, factor: float = 1.0) -> list[tuple[int, int]]:
    """(step, rank) of alarms in a run of unequal loads under noise: jitter of 25 % a step, ranks that differ by 5 %, pauses of 3 x in one
    step of a hundred, and a drift that lasts a few windows."""
    generator = np.random.default_rng(seed)
    loads = generator.uniform(0.5, 1.5, (STEPS, RANKS))
    noise = np.exp(generator.normal(0, 0.25, (STEPS, RANKS))) * np.exp(generator.normal(0, 0.05, RANKS))
    noise *= np.where(generator.random((STEPS, RANKS)) < 0.01, 3.0, 1.0)
    drift = np.repeat(np.exp(generator.normal(0, 0.05, (STEPS // 30, RANKS))), 30, axis=0)
    seconds = loads * noise * drift
    if slow is not None:
        seconds[:, slow] *= factor
    stragglers = Stragglers(RANKS)
    return [
        (step, finding.rank)
        for step in range(STEPS)
        for finding in stragglers.add(seconds[step], loads[step])
        if finding.is_slow
    ]  # fmt: skip


def test_under_one_run_in_a_hundred_raises_a_false_alarm() -> None:
    assert sum(bool(simulate(seed)) for seed in range(RUNS)) < RUNS / 100


def test_a_rank_that_takes_twice_as_long_is_the_one_that_is_named_at_the_first_chance() -> None:
    for seed in range(20):
        alarms = simulate(seed, slow=seed % RANKS, factor=2.0)
        assert alarms == [(WINDOWS * WINDOW_STEPS - 1, seed % RANKS)], seed


def test_of_two_ranks_the_slower_one_is_named() -> None:
    stragglers = Stragglers(2)
    found = [finding for _ in range(60) for finding in stragglers.add([1.0, 1.4])]
    assert [(finding.rank, round(finding.ratio, 2)) for finding in found] == [(1, 1.4)]


def test_a_rank_without_work_and_a_world_of_one_are_never_slow() -> None:
    alone, idle = Stragglers(1), Stragglers(3)
    for _ in range(100):
        assert alone.add([1.0]) == []
        assert idle.add([1.0, 1.0, 5.0], [1.0, 1.0, 0.0]) == []
