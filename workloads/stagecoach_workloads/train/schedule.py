"""The learning rate's course over a stage: linear warm-up, then cosine (recipes.md 1.5; AXLearn's cosine_with_linear_warmup)."""

import math

from stagecoach.contract.plan import Schedule


def rate_scale(schedule: Schedule, step: int, steps: int) -> float:
    """What every peak rate is multiplied by at `step` (from 1) of `steps`: 0 to 1.

    Rises in a line from 0 (at a step 0 that is never taken) to 1 at `warmup_steps`; then `cosine` falls to `final_fraction` at the last
    step and stays there, `constant` stays at 1. A stage shorter than its warm-up ends on the way up.
    """
    if step < schedule.warmup_steps:
        return max(step, 0) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    falling = steps - schedule.warmup_steps
    if falling <= 0:
        return 1.0
    done = min(max(step - schedule.warmup_steps, 0) / falling, 1.0)
    return schedule.final_fraction + (1 - schedule.final_fraction) * 0.5 * (1 + math.cos(math.pi * done))
