"""One attempt at a stage, from the first look at plan.json to the last commit."""

import json
import time
from collections.abc import Mapping

import torch.distributed as dist

from stagecoach.checkpoints.listing import CheckpointRef
from stagecoach.checkpoints.manifest import read_manifest
from stagecoach.contract.identity import identity_fields, identity_hash
from stagecoach.contract.job import ObjectRef, TrainResult
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import leaves
from stagecoach.errors import CheckpointError
from stagecoach.storage import NotFound
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.agreement import from_rank_0
from stagecoach_workloads.outcomes import is_peer_error
from stagecoach_workloads.parallel.fsdp import blocks_of
from stagecoach_workloads.parallel.mesh import build_mesh, mesh_axes
from stagecoach_workloads.rank import RankContext, Stopped
from stagecoach_workloads.telemetry.counts import flops_of
from stagecoach_workloads.telemetry.own_time import OwnTime
from stagecoach_workloads.telemetry.run_log import RunLog
from stagecoach_workloads.testing.phases import reached
from stagecoach_workloads.train.assemble import (
    World,
    build_feed,
    build_state,
    fingerprints_of,
    make_deterministic,
    open_stage_data,
    read_plan,
    resolve_steps,
    sources_of,
)  # fmt: skip
from stagecoach_workloads.train.loop import Run, restore_random_state
from stagecoach_workloads.train.rendezvous import choose_device, meet
from stagecoach_workloads.train.samples import FixedSamples
from stagecoach_workloads.train.starts import begin
from stagecoach_workloads.train.state import TrainState, weights_digest
from stagecoach_workloads.train.validation import build_validation

SHOWN = 10  # differing fields in an error
STOP_NEWS_S = 1.0  # a peer that left because it was stopped may be heard of before our own signal is


def run_stage(context: RankContext) -> None:
    """Trains to the last step, from the newest good checkpoint or from the start. Raises what `outcomes.py` turns into exit codes."""
    try:
        _run_stage(context)
    except Stopped:
        raise
    except Exception as error:
        if came_of_a_stop(error) or (is_peer_error(error) and _stop_is_near(context)):
            raise Stopped(committed_step=int(context.last_beat.numbers.get("committed_step", 0))) from error
        raise


def _run_stage(context: RankContext) -> None:
    with context.leaving_at_once():
        plan = read_plan(context)
        world = join(context, plan)
        state = build_state(plan, world.mesh, world.device)
        own_time = OwnTime(blocks_of(state.model), world.device)
        data = open_stage_data(plan, state.model, context.job.store)
        steps, fingerprints = resolve_steps(plan, data), fingerprints_of(plan, data)
        checkpoints = Checkpoints(
            context, identity=identity_hash(plan), mesh=world.axes, fingerprints=fingerprints,
            keep=plan.checkpoint.keep, keep_every_steps=plan.checkpoint.keep_every_steps,
        )  # fmt: skip
        restore_s = restore_or_begin(context, plan, state, checkpoints)
        validation = build_validation(plan, rank=world.rank, world_size=world.world_size, device=world.device)
    log = RunLog(
        context, plan, steps=steps, start_step=state.step, flops=flops_of(plan),
        tokens=state.tokens, images=state.images, restore_s=restore_s,
    )  # fmt: skip
    feed = build_feed(context, data, state, steps=steps)
    samples = FixedSamples(validation.data) if validation is not None else None
    run = Run(
        context, plan, world, state, checkpoints, log, feed, steps, sources_of(plan, data), own_time, validation, samples
    )  # fmt: skip
    try:
        if state.step >= steps:
            log.nothing_to_do(state.step)
        run.train()
        leave_result(context, run, fingerprints)
        dist.barrier()  # leaving earlier could abort a peer in gloo's threads
    finally:
        feed.close()
        checkpoints.close()
        log.close()


def join(context: RankContext, plan: StagePlan) -> World:
    """Meets the other ranks; after it there is a process group and a mesh."""
    context.event("phase", "rendezvous", step=0)
    reached("rendezvous", 0)
    context.heartbeat(step=0, phase="rendezvous")
    axes = mesh_axes(plan.layout, context.world_size)
    device = choose_device(context.local_rank)
    make_deterministic(plan, device)
    meet(context, plan, device)
    return World(context.rank, context.world_size, device, axes, build_mesh(axes, device))


def restore_or_begin(context: RankContext, plan: StagePlan, state: TrainState, checkpoints: Checkpoints) -> float:
    """Takes up the newest good checkpoint, or fills in the first weights. Returns the seconds it took."""
    context.event("phase", "restore", step=0)
    reached("restore", 0)
    context.heartbeat(step=0, phase="restore")
    began = time.monotonic()
    refuse_other_plan(context, plan, checkpoints)
    values = checkpoints.restore(state.tensors())
    if values is None:
        begin(state.model, plan, checkpoints, lambda: context.heartbeat(step=0, phase="restore"))
        how = restore_random_state(state, None, plan, context.rank)
        told: Mapping[str, object] = {"from": plan.init.kind, "random": how}
    else:
        state.take_up(values.shared)
        how = restore_random_state(state, values.own, plan, context.rank)
        told = {"from": f"step {state.step}", "random": how}
    seconds = time.monotonic() - began
    context.event("started", {**told, "seconds": round(seconds, 3)}, step=state.step)
    context.heartbeat(step=state.step, phase="restore", committed_step=checkpoints.committed_step)
    return seconds


def refuse_other_plan(context: RankContext, plan: StagePlan, checkpoints: Checkpoints) -> None:
    """Raises CheckpointError, on all ranks, that says field by field how the newest checkpoint's plan differs from plan.json (B47)."""

    def check() -> bytes:
        ref = checkpoints.latest()
        if ref is not None:
            check_same_plan(context.job, ref, plan)
        return b""

    from_rank_0(check)


def check_same_plan(job: JobFolder, ref: CheckpointRef, plan: StagePlan) -> None:
    """Compares what decides the weights. A checkpoint that cannot be read is left to `restore`."""
    try:
        manifest, _ = read_manifest(job, ref)
        if manifest.identity == identity_hash(plan):
            return
        there = json.loads(job.store.read(f"{ref.key}/state.json"))["values"]["plan"]
    except (CheckpointError, NotFound, ValueError, KeyError, TypeError):
        return
    here, before = leaves(identity_fields(plan)), leaves(there)
    differing = [path for path in sorted({*here, *before}) if here.get(path) != before.get(path)]
    changed = [f"{path} was {before.get(path)} and is {here.get(path)}" for path in differing]
    more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    raise CheckpointError(
        f"{ref.uri} was trained with another plan: {'; '.join(changed[:SHOWN])}{more}. Set them back to go on, or `stagecoach fork` the run"
    )


def leave_result(context: RankContext, run: Run, fingerprints: Mapping[str, str]) -> None:
    """`result.json`: what `stage.json` is made from. All ranks take part; rank 0 writes."""
    digest = weights_digest(run.state.model, run.world.rank, run.world.world_size, run.saving.beat)
    if context.rank != 0:
        return
    ref = run.checkpoints.latest()
    if ref is None or ref.step != run.state.step:
        raise CheckpointError(f"{context.job.uri}: the last step {run.state.step} was committed and cannot be found; was it removed?")
    manifest = context.job.store.read(f"{ref.key}/COMMITTED").decode().strip()
    loss = {"loss": run.state.last_loss} if run.state.last_loss is not None else {}
    context.job.write_result(
        TrainResult(
            attempt=context.attempt, step=run.state.step, checkpoint=ObjectRef(uri=ref.uri, digest=manifest), weights_digest=digest,
            tokens=run.state.tokens, images=run.state.images, metrics={**loss, **run.state.metrics}, fingerprints=dict(fingerprints),
        )
    )  # fmt: skip


def came_of_a_stop(error: BaseException | None) -> bool:
    """True for a stop, and for what others made of one that was raised inside of them: torch's compiler wraps all that it meets."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error is not None


def _stop_is_near(context: RankContext) -> bool:
    """Was this rank asked to stop, or is it within a moment?"""
    until = time.monotonic() + STOP_NEWS_S
    while not context.stop_requested() and time.monotonic() < until:
        time.sleep(0.02)
    return context.stop_requested()
