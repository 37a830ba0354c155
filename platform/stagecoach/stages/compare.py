"""What differs between two runs: their plans, what they came to, their losses at the same steps. Reads the bucket only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagecoach.contract.identity import identity_fields
from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.records import leaves
from stagecoach.errors import ConfigError
from stagecoach.report.numbers import finite
from stagecoach.stages.act import run_of

SHOWN_STEPS = 12  # of the losses' table


@dataclass(frozen=True, kw_only=True)
class StageComparison:
    """One stage of both. Each difference is (path, in A, in B); a value that one does not have is None."""

    stage: str
    state: tuple[str, str]
    plan: tuple[tuple[str, Any, Any], ...]
    metrics: tuple[tuple[str, float | None, float | None], ...]
    losses: tuple[tuple[int, float, float], ...]  # at all common steps
    same_weights: bool | None  # None while one is not finished

    @property
    def first_difference(self) -> int | None:
        """The first common step at which the losses are not equal to the last bit."""
        return next((step for step, one, other in self.losses if one != other), None)

    @property
    def largest_difference(self) -> float:
        return max((abs(one - other) for _, one, other in self.losses), default=0.0)


def compare_runs(runs: Runs, one: str, other: str) -> list[StageComparison]:
    """Stage by stage, for stages that both have. Raises ConfigError when a run is not there or they have no stage in common."""
    left, right = run_of(runs, one), run_of(runs, other)
    common = [stage for stage in left.stages if stage in right.stages]
    if not common:
        raise ConfigError(f"{one} has the stages {', '.join(left.stages)}, {other} has {', '.join(right.stages)}: none in common")
    begun = [stage for stage in common if all(runs.stage(run, stage).plan() is not None for run in (left, right))]
    return [compare_stage(runs, left, right, stage) for stage in begun or common]  # a fork has only the stages from its fork on


def compare_stage(runs: Runs, left: RunRecord, right: RunRecord, stage: str) -> StageComparison:
    """One stage of two runs."""
    a, b = runs.stage(left, stage), runs.stage(right, stage)
    done_a, done_b = a.stage(), b.stage()
    return StageComparison(
        stage=stage,
        state=(state_of(a), state_of(b)),
        plan=plan_difference(a, b),
        metrics=paired(done_a.metrics if done_a else {}, done_b.metrics if done_b else {}),
        losses=common_losses(losses_of(a), losses_of(b)),
        same_weights=done_a.weights_digest == done_b.weights_digest if done_a and done_b else None,
    )


def plan_difference(a: JobFolder, b: JobFolder) -> tuple[tuple[str, Any, Any], ...]:
    """Values that decide the weights and differ, by path. Nothing where a plan is not frozen yet."""
    one, other = a.plan(), b.plan()
    if one is None or other is None:
        return ()
    old, new = leaves(identity_fields(one)), leaves(identity_fields(other))
    return tuple((path, old.get(path), new.get(path)) for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path))


def losses_of(folder: JobFolder) -> dict[int, float]:
    """step -> loss, of all attempts; where an attempt made a step again, the later word counts."""
    found: dict[int, float] = {}
    for attempt in folder.attempt_numbers():
        start = folder.attempt_start(attempt)
        first = start.resumed_from_step if start is not None else 0
        found = {step: loss for step, loss in found.items() if step <= first}
        for event in folder.events(attempt, "rank-0"):
            value, step = event.get("value"), event.get("step")
            loss = finite(value.get("loss")) if event.get("name") == "step" and isinstance(value, Mapping) else None
            if isinstance(step, int) and loss is not None:
                found[step] = loss
    return found


def common_losses(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[tuple[int, float, float], ...]:
    return tuple((step, a[step], b[step]) for step in sorted(a.keys() & b.keys()))


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[tuple[str, float | None, float | None], ...]:
    return tuple((name, a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()))


def thinned(losses: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most SHOWN_STEPS of them, evenly, the last one kept."""
    stride = -(-len(losses) // SHOWN_STEPS) or 1
    return list(losses[::-stride][::-1])


def state_of(folder: JobFolder) -> str:
    """For a person: finished, or how far."""
    done = folder.stage()
    if done is not None:
        return f"finished at step {done.steps}"
    numbers = folder.attempt_numbers()
    progress = folder.progress(numbers[-1]) if numbers else None
    return f"at step {progress.step}" if progress is not None else "not started"
