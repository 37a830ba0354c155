"""Checks of ranks, meshes, saving and the time they take."""

import math
from collections.abc import Iterator

from stagecoach.contract.plan import StagePlan
from stagecoach.costs import Hardware, StageCosts
from stagecoach.costs.memory import MASTER_BYTES, shard_ranks
from stagecoach.recipes.findings import Finding

SELDOM = 10  # a save interval so many times the advised one loses noticeably more than it saves
UNEVEN = 0.25  # waste from which a batch counted in samples is told of: its number of rows varies from step to step


def findings(stage: StagePlan, costs: StageCosts, machine: Hardware, grace_s: float) -> Iterator[Finding]:
    """Everything wrong with the layout and the checkpoints."""
    yield from _mesh(stage, machine)
    yield from _rows(stage, costs)
    yield from _network(stage, costs, machine)
    yield from _saving(stage, costs)
    yield from _grace(costs, grace_s)


def _mesh(stage: StagePlan, machine: Hardware) -> Iterator[Finding]:
    layout, decoder = stage.layout, stage.model.decoder
    world = layout.ranks
    fixed = layout.dp_replicate * (layout.dp_shard or 1) * layout.tp
    if world % fixed or (layout.dp_shard and world != fixed):
        shard = layout.dp_shard or "(the rest)"
        says = (
            f"{layout.nodes} nodes x {layout.ranks_per_node} ranks = {world}, but dp_replicate {layout.dp_replicate} x dp_shard {shard} "
            f"x tp {layout.tp} = {fixed}{'' if layout.dp_shard else ', which does not divide it'}"
        )
        yield Finding("error", "layout", says, "make both sides equal; dp_shard=null takes what is left")
    for name, value in (("heads", decoder.heads), ("kv_heads", decoder.kv_heads), ("ffn_width", decoder.ffn_width)):
        if value % layout.tp:
            yield Finding("error", "layout.tp", f"tp={layout.tp} does not divide decoder.{name}={value}", f"use a divisor of {value}")
    experts = decoder.moe.experts if decoder.moe else 1
    if experts % layout.ep:
        yield Finding("error", "layout.ep", f"ep={layout.ep} does not divide {experts} experts", f"use a divisor of {experts}")
    if layout.ranks_per_node > machine.ranks_per_node:
        says = f"{layout.ranks_per_node} ranks a node; {machine.name} machines have {machine.ranks_per_node}"
        yield Finding("warning", "layout.ranks_per_node", says, f"use {machine.ranks_per_node} and more nodes")


def _rows(stage: StagePlan, costs: StageCosts) -> Iterator[Finding]:
    ranks, rows = stage.layout.ranks, costs.load.rows
    if rows < ranks:
        about = "about " if stage.batch.unit == "samples" else ""
        says = f"{about}{rows:.0f} rows a step for {ranks} ranks: some would have none"
        yield Finding("error", "batch.size", says, f"use at most {max(1, int(rows))} ranks, or a larger batch.size")
        return
    waste = 1 - rows / (ranks * math.ceil(rows / ranks))
    if stage.batch.unit == "rows" and rows % ranks:
        says = f"{rows:.0f} rows do not divide by {ranks} ranks: they are dealt unevenly, and {waste:.1%} of the time is waited"
        yield Finding("warning", "batch.size", says, f"use a multiple of {ranks}")
    elif stage.batch.unit == "samples" and waste > UNEVEN:
        says = f"about {rows:.0f} rows a step for {ranks} ranks: about {waste:.0%} of the time is waited"
        yield Finding("warning", "layout.nodes", says, "use fewer ranks, or another batch.size")


def _network(stage: StagePlan, costs: StageCosts, machine: Hardware) -> Iterator[Finding]:
    """Sharding over machines moves every parameter three times a microstep: two gathers, one reduction. Does compute hide it?"""
    layout = stage.layout
    if layout.nodes == 1 or shard_ranks(layout) <= layout.ranks_per_node:
        return
    moved = costs.parameters.total * 2 * machine.compute_bytes + costs.parameters.trainable * MASTER_BYTES
    network_s = moved / machine.network_bytes_per_s
    row_s = costs.flops.total / max(costs.load.rows, 1) / (machine.peak_flops * machine.mfu)
    rows = min(float(layout.microbatch_rows), costs.load.rows / layout.ranks)
    if network_s <= row_s * rows:
        return
    says = (
        f"{rows:.2g} rows per rank and microstep compute for {row_s * rows:.2g} s, gathering and reducing {moved / 1e9:.0f} GB over the "
        f"network takes {network_s:.2g} s: the step time is optimistic"
    )
    do = f"use at least {math.ceil(network_s / row_s)} rows per rank and microstep, or dp_replicate={layout.nodes} (HSDP) if it fits"
    if stage.model.decoder.moe:
        do += "; experts need expert parallelism, which is not built yet"
    yield Finding("warning", "layout.microbatch_rows", says, do)


def _saving(stage: StagePlan, costs: StageCosts) -> Iterator[Finding]:
    checkpoint = stage.checkpoint
    interval_s = checkpoint.every_steps * costs.step_time_s
    if checkpoint.keep_every_steps and checkpoint.keep_every_steps % checkpoint.every_steps:
        says = f"{checkpoint.keep_every_steps} is no multiple of every_steps={checkpoint.every_steps}: no such checkpoint is ever saved"
        yield Finding("error", "checkpoint.keep_every_steps", says, f"use a multiple of {checkpoint.every_steps}")
    if interval_s < costs.save_time_s:
        says = f"every {checkpoint.every_steps} steps is {interval_s:.0f} s, and a save takes {costs.save_time_s:.0f} s: steps would wait"
        least = math.ceil(costs.save_time_s / costs.step_time_s)
        yield Finding("warning", "checkpoint.every_steps", says, f"use at least {least}")
    elif interval_s > SELDOM * costs.advised_checkpoint_interval_s and checkpoint.every_steps < costs.steps:
        advised = max(1, round(costs.advised_checkpoint_interval_s / costs.step_time_s))
        says = f"every {checkpoint.every_steps} steps is {interval_s:.0f} s, advised are {costs.advised_checkpoint_interval_s:.0f} s"
        yield Finding("warning", "checkpoint.every_steps", says, f"use about {advised}: a failure loses half an interval")


def _grace(costs: StageCosts, grace_s: float) -> Iterator[Finding]:
    """A stop finishes the step, saves, and leaves torchrun its margin (reliability.md section 3)."""
    margin_s = min(5.0, grace_s / 4)
    need_s = costs.step_time_s + costs.save_time_s + margin_s
    if need_s > grace_s:
        says = (
            f"a stop needs {need_s:.0f} s (step {costs.step_time_s:.1f} + save {costs.save_time_s:.1f} + margin {margin_s:.1f}), the grace "
            f"period is {grace_s:.0f} s: preemptions lose up to one save interval"
        )
        yield Finding("warning", "checkpoint", says, f"ask the cluster's people for a grace period of {math.ceil(need_s)} s (--grace here)")
