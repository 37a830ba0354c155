"""Checks of a stage's architecture, of what it starts from, and of its optimisation."""

import math
from collections.abc import Iterator

from stagecoach.contract.plan import Model, Parent, PipelinePlan, Pretrained, StagePlan
from stagecoach.contract.records import did_you_mean, to_plain, walk_leaves
from stagecoach.costs.load import stage_steps
from stagecoach.costs.parameters import feature_depth, patches
from stagecoach.recipes.findings import Finding

HUGGING_FACE = "hf://"
# Fields of a model that may change from a stage to the next without a tensor changing its shape.
FREE = (
    "rope_theta", "rope_scaling", "norm_eps", "sliding_window", "max_positions",
    "load_balance_weight", "router_z_weight", "capacity_factor", "upcycle", "top_k",
)  # fmt: skip


def findings(plan: PipelinePlan, stage: StagePlan) -> Iterator[Finding]:
    """Everything wrong with the model, its parent and its optimisation."""
    yield from _shapes(stage.model)
    yield from _pretrained(stage)
    yield from _parent(plan, stage)
    yield from _training(stage)


def _shapes(model: Model) -> Iterator[Finding]:
    encoder, connector, decoder = model.encoder, model.connector, model.decoder
    if encoder.width % encoder.heads:
        yield Finding("error", "model.encoder.heads", f"{encoder.heads} heads do not divide a width of {encoder.width}", "make them divide")
    if not 1 <= feature_depth(encoder) <= encoder.layers:
        says = f"layer {encoder.feature_layer} is none of the encoder's {encoder.layers}"
        yield Finding("error", "model.encoder.feature_layer", says, f"use -1 (the last) to -{encoder.layers}")
    if decoder.heads % decoder.kv_heads:
        says = f"{decoder.kv_heads} key-value heads do not divide {decoder.heads} heads"
        yield Finding("error", "model.decoder.kv_heads", says, f"use a divisor of {decoder.heads}")
    if decoder.head_dim % 2:
        yield Finding("error", "model.decoder.head_dim", f"{decoder.head_dim} is odd; rotary turns pairs", "use an even number")
    if decoder.moe and decoder.moe.top_k > decoder.moe.experts:
        says = f"top_k={decoder.moe.top_k} of {decoder.moe.experts} experts"
        yield Finding("error", "model.decoder.moe.top_k", says, f"use at most {decoder.moe.experts}")
    if decoder.moe and decoder.moe.every > decoder.layers:
        says = f"every {decoder.moe.every}th of {decoder.layers} layers is none"
        yield Finding("error", "model.decoder.moe.every", says, f"use at most {decoder.layers}")
    if model.image.size < encoder.patch_size or encoder.image_size < encoder.patch_size:
        says = f"an image of {min(model.image.size, encoder.image_size)} px has no whole patch of {encoder.patch_size} px"
        yield Finding("error", "model.image.size", says, f"use at least {encoder.patch_size}")
        return
    yield from _pooling(connector.kind, connector.tokens, patches(encoder, model.image.size))


def _pooling(kind: str, tokens: int, patch_count: int) -> Iterator[Finding]:
    """Convolutional and average pooling make a square grid no finer than the patches."""
    if kind not in ("c_abstractor", "average_pool"):
        return
    side = math.isqrt(tokens)
    if side**2 != tokens:
        says = f"{tokens} is no square, and {kind} pools to a square grid"
        yield Finding("error", "model.connector.tokens", says, f"use {side**2} or {(side + 1) ** 2}, or connector.kind=perceiver")
    if tokens > patch_count:
        says = f"{tokens} tokens from {patch_count} patches: pooling cannot make more"
        yield Finding("error", "model.connector.tokens", says, f"use at most {patch_count}, or a larger model.image.size")


# --- what it starts from -----------------------------------------------------------------------------------------------------


def _pretrained(stage: StagePlan) -> Iterator[Finding]:
    """A recipe names published weights by their Hugging Face name; a job opens addresses, and downloads nothing from the internet."""
    if not isinstance(stage.init, Pretrained):
        return
    for part in ("encoder", "decoder"):
        uri = getattr(stage.init, part)
        if uri is not None and uri.lower().startswith(HUGGING_FACE):
            says = f"{uri} is a name on Hugging Face, and no job downloads from there"
            do = f"to do before a run: copy that folder into the bucket and --set {stage.name}.init.{part}=URI, like s3://bucket/weights/NAME"
            yield Finding("warning", f"init.{part}", says, do)


def _parent(plan: PipelinePlan, stage: StagePlan) -> Iterator[Finding]:
    if not isinstance(stage.init, Parent):
        return
    names = [other.name for other in plan.stages]
    earlier = names[: names.index(stage.name)]
    wanted = stage.init.stage
    if wanted == stage.name and stage.init.checkpoint is not None:
        return  # a fork: this very stage begins again from one of another run's checkpoints
    if wanted not in earlier:
        known = "is not an earlier stage" if wanted in names else f"is no stage of {plan.name}{did_you_mean(wanted, earlier)}"
        yield Finding("error", "init.stage", f"`{wanted}` {known}", f"earlier stages: {', '.join(earlier) or 'none; use init.kind=random'}")
        return
    mine, theirs = _tensor_fields(stage.model), _tensor_fields(plan.stage(wanted).model)
    for path in sorted(set(mine) | set(theirs)):
        here, there = mine.get(path), theirs.get(path)
        if here != there:
            says = f"is {here}, but stage {wanted}, whose weights it starts from, has {there}"
            yield Finding("error", f"model.{path}", says, f"set both alike: {wanted}.model.{path} is followed by its descendants")


def _tensor_fields(model: Model) -> dict[str, object]:
    """What decides the tensors' names and shapes, by path below `model`."""
    found: dict[str, object] = {}
    plain = to_plain(model)
    walk_leaves({part: plain[part] for part in ("encoder", "connector", "decoder")}, found.__setitem__)
    return {path: value for path, value in found.items() if path.rpartition(".")[2] not in FREE and "rope_scaling" not in path}


# --- optimisation ------------------------------------------------------------------------------------------------------------


def _training(stage: StagePlan) -> Iterator[Finding]:
    steps = stage_steps(stage)
    if stage.schedule.warmup_steps >= steps:
        says = f"{stage.schedule.warmup_steps} warm-up steps of {steps}: the peak rate is never reached"
        yield Finding("error", "schedule.warmup_steps", says, f"use fewer than {steps}")
    if not stage.model.trainable and stage.model.lora is None:
        yield Finding("error", "model.trainable", "nothing is trained", "name parts: encoder, connector, decoder, embeddings")
    if (stage.loss.kind == "dpo") != (stage.loss.dpo_beta is not None):
        says = f"loss.kind={stage.loss.kind} with dpo_beta={stage.loss.dpo_beta}"
        yield Finding("error", "loss.dpo_beta", says, "set it for dpo (such as 0.1), and for nothing else")
    decoder = stage.model.decoder
    if stage.batch.seq_len > decoder.max_positions and decoder.rope_scaling is None:
        says = f"rows of {stage.batch.seq_len} positions; the decoder's rotary angles were made for {decoder.max_positions}"
        yield Finding("error", "batch.seq_len", says, "raise model.decoder.max_positions or set model.decoder.rope_scaling")
