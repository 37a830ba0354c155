"""Every reason why a plan cannot work, found without a GPU: `check(plan)`.

An *error* means that it would fail or learn something else than asked; a *warning* means that it works at a price. Each names the
setting by its dotted path, says what is true, and says what to do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from stagecoach.contract.plan import PipelinePlan, StagePlan
from stagecoach.costs import HARDWARE, Hardware, StageCosts, stage_costs
from stagecoach.recipes import check_data, check_evaluation, check_layout, check_model
from stagecoach.recipes.built import not_built
from stagecoach.recipes.findings import Finding

Cause = Literal["setting", "memory", "not_built"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One reason. `cause` decides how `stagecoach plan` ends: a wrong setting is asked wrongly, the others are a check that failed."""

    severity: Literal["error", "warning"]
    path: str
    says: str
    do: str
    cause: Cause = "setting"


def check(plan: PipelinePlan, *, grace_s: float = 30.0, costs: Mapping[str, StageCosts] | None = None) -> list[Problem]:
    """Problems of all stages, in the stages' order. `costs` by stage name are computed where they are not given."""
    return [problem for stage in plan.stages for problem in check_stage(plan, stage, grace_s, (costs or {}).get(stage.name))]


def check_stage(plan: PipelinePlan, stage: StagePlan, grace_s: float, costs: StageCosts | None = None) -> list[Problem]:
    """Problems of one stage, errors first."""
    machine = HARDWARE.get(stage.resources.hardware)
    if machine is None:
        known = ", ".join(HARDWARE)
        return [
            _problem(stage, Finding("error", "resources.hardware", f"{stage.resources.hardware!r} is not known", f"use one of {known}"))
        ]
    found = [
        Problem(severity="error", path=f"{stage.name}.{path}", says=f"{what} is not built yet", do=do, cause="not_built")
        for path, what, do in not_built(stage)
    ]
    found += [_problem(stage, finding) for finding in check_model.findings(plan, stage)]
    found += [_problem(stage, finding) for finding in check_data.findings(stage)]
    found += [_problem(stage, finding) for finding in check_evaluation.findings(stage)]
    costs = costs or stage_costs(stage, machine)
    found += [_problem(stage, finding) for finding in check_layout.findings(stage, costs, machine, grace_s)]
    found += memory_problems(stage, costs, machine)
    return sorted(found, key=lambda problem: problem.severity != "error")


def _problem(stage: StagePlan, finding: Finding) -> Problem:
    return Problem(severity=finding.severity, path=f"{stage.name}.{finding.path}", says=finding.says, do=finding.do)


def memory_problems(stage: StagePlan, costs: StageCosts, machine: Hardware) -> Iterator[Problem]:
    """Does one rank's share fit? If not, the first change that makes it fit."""
    room, need = machine.memory_bytes * machine.usable, costs.memory.total
    if need <= room:
        return
    kinds = {kind: getattr(costs.memory, kind) for kind in ("parameters", "optimizer", "gradients", "activations")}
    largest = max(kinds, key=lambda kind: kinds[kind])
    yield Problem(
        severity="error",
        path=f"{stage.name}.layout",
        says=f"needs {need / 1e9:.1f} GB per rank, of which {kinds[largest] / 1e9:.1f} GB {largest}; {machine.name} has "
        f"{room / 1e9:.1f} GB to use of {machine.memory_bytes / 1e9:.0f}",
        do=remedy(stage, machine),
        cause="memory",
    )


def remedy(stage: StagePlan, machine: Hardware) -> str:
    """The smallest of a few changes that makes the stage fit, as settings."""
    layout, name = stage.layout, stage.name
    full = replace(layout, activation_checkpointing="full", dp_shard=None)
    single = replace(full, microbatch_rows=1)
    tries = {
        f"--set {name}.layout.activation_checkpointing=full": full,
        f"--set {name}.layout.activation_checkpointing=full --set {name}.layout.microbatch_rows=1": single,
        f"--set {name}.layout.dp_replicate=1 (shard over all ranks), full recompute, microbatch_rows=1": replace(single, dp_replicate=1),
    }
    for factor in (2, 4, 8, 16):
        tries[f"{layout.nodes * factor} nodes, dp_replicate=1, full recompute, microbatch_rows=1"] = replace(
            single, dp_replicate=1, nodes=layout.nodes * factor
        )
    for words, changed in tries.items():
        if stage_costs(replace(stage, layout=changed), machine).memory.total <= machine.memory_bytes * machine.usable:
            return words
    return "use hardware with more memory, fewer data.packing.images_per_row, a shorter batch.seq_len or a smaller model"
