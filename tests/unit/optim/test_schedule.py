"""The rate's course over a stage."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.plan import Schedule
from stagecoach.costs import peak_lr
from stagecoach.recipes import recipe_function
from stagecoach_workloads.train.schedule import rate_scale

SCHEDULES = st.builds(
    Schedule,
    kind=st.sampled_from(["cosine", "constant"]),
    warmup_steps=st.integers(0, 3000),
    final_fraction=st.floats(0, 1),
)


@given(schedule=SCHEDULES, steps=st.integers(1, 10_000), step=st.integers(1, 12_000))
def test_the_scale_stays_between_0_and_1_and_rises_only_while_warming_up(schedule: Schedule, steps: int, step: int) -> None:
    now, following = rate_scale(schedule, step, steps), rate_scale(schedule, step + 1, steps)
    assert 0 <= now <= 1
    if step >= schedule.warmup_steps:
        assert following <= now
    else:
        assert following > now


@given(schedule=SCHEDULES, steps=st.integers(1, 10_000))
def test_it_peaks_at_the_end_of_the_warm_up_and_ends_where_the_plan_says(schedule: Schedule, steps: int) -> None:
    if 0 < schedule.warmup_steps <= steps:
        assert rate_scale(schedule, schedule.warmup_steps, steps) == 1.0
    if schedule.kind == "cosine" and schedule.warmup_steps < steps:
        assert rate_scale(schedule, steps, steps) == pytest.approx(schedule.final_fraction, abs=1e-12)
    if schedule.kind == "constant" and schedule.warmup_steps < steps:
        assert rate_scale(schedule, steps, steps) == 1.0


@given(warmup=st.integers(1, 50), rest=st.integers(1, 200), final=st.floats(0, 1))
def test_it_is_torchs_linear_warm_up_and_cosine_annealing(warmup: int, rest: int, final: float) -> None:
    steps = warmup + rest
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest, eta_min=final)
    schedule = Schedule(kind="cosine", warmup_steps=warmup, final_fraction=final)
    for step in range(warmup, steps + 1):
        assert rate_scale(schedule, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        annealing.step()
    assert rate_scale(schedule, 1, steps) == 1 / warmup


def test_mm1s_pre_training_runs_at_the_laws_rate_and_down_to_a_tenth() -> None:
    """3B: the law gives 5.9e-5 and the paper trained at 6e-5; 2,000 steps up, 200,000 in all."""
    plan = recipe_function("mm1_3b")().stage("pretrain")
    assert plan.optimizer.peak_lr == pytest.approx(peak_lr(2.9e9), rel=0.03)
    rates = [plan.optimizer.peak_lr * rate_scale(plan.schedule, step, 200_000) for step in (1, 1000, 2000, 101_000, 200_000)]
    assert rates == pytest.approx([6e-5 / 2000, 3e-5, 6e-5, 6e-5 * 0.55, 6e-6], rel=1e-6)
