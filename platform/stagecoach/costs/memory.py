"""Memory of one rank, by kind. Parameters and optimizer state are exact; activations are an estimate of what the layers keep.

What is assumed of the trainer (architecture.md section 7): FSDP2 per block over `dp_shard` ranks; fp32 parameters, gradients and
optimizer state of trainable parts; frozen parts kept in the compute dtype, without gradient or optimizer state; compute in bf16 (fp32 on
CPU); two gathered blocks at a time; the fullest microbatch, with every row's image budget used up; logits in chunks of 1,024 positions.
"""

import math
from dataclasses import dataclass

from stagecoach.contract.plan import Layout, Model, Optimizer, StagePlan
from stagecoach.costs.hardware import Hardware
from stagecoach.costs.parameters import Tensor, is_between_layers, is_trainable, model_tensors, moe_layers, patches, resampler_depth

MASTER_BYTES = 4  # fp32
LOGIT_CHUNK = 1024  # positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank."""

    parameters: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.optimizer + self.gradients + self.activations


def shard_ranks(layout: Layout) -> int:
    """Ranks that share one copy of the state."""
    return layout.dp_shard or max(1, layout.ranks // layout.dp_replicate)


def optimizer_bytes(tensor: Tensor, optimizer: Optimizer) -> int:
    """State of one trainable tensor: AdamW two moments, Muon one for the matrices between layers and AdamW's for the rest, Adafactor a row
    and a column over the two largest dims."""
    if optimizer.kind == "adamw":
        return 2 * MASTER_BYTES * tensor.count
    if optimizer.kind == "muon":
        return MASTER_BYTES * tensor.count * (1 if is_between_layers(tensor.part, tensor.name, len(tensor.shape)) else 2)
    if optimizer.kind == "adafactor" and len(tensor.shape) >= 2:
        *rest, rows, columns = sorted(tensor.shape)
        return MASTER_BYTES * tensor.copies * math.prod(rest) * (rows + columns)
    return MASTER_BYTES * tensor.count


def state_bytes(plan: StagePlan, compute_bytes: int = 2) -> dict[str, int]:
    """The whole state over all ranks, as it lies in memory and in a checkpoint: parameters and optimizer."""
    parameters = optimizer = 0
    for tensor in model_tensors(plan.model):
        trained = is_trainable(tensor, plan.model)
        parameters += tensor.count * (MASTER_BYTES if trained else compute_bytes)
        optimizer += optimizer_bytes(tensor, plan.optimizer) if trained else 0
    return {"parameters": parameters, "optimizer": optimizer}


def memory_per_rank(plan: StagePlan, machine: Hardware) -> Memory:
    """The fullest moment of a step."""
    shards = shard_ranks(plan.layout)
    state = state_bytes(plan, machine.compute_bytes)
    trainable = sum(tensor.count for tensor in model_tensors(plan.model) if is_trainable(tensor, plan.model))
    gathered = 2 * largest_block(plan.model) + _root_block(plan.model) if shards > 1 else 0
    return Memory(
        parameters=state["parameters"] / shards + gathered * machine.compute_bytes,
        optimizer=state["optimizer"] / shards,
        gradients=trainable * MASTER_BYTES / shards + (largest_block(plan.model) * machine.compute_bytes if shards > 1 else 0),
        activations=activation_bytes(plan, machine),
    )


def largest_block(model: Model) -> int:
    """Parameters of the largest unit that is gathered at once: one layer of the decoder or encoder."""
    per_layer: dict[str, int] = {}
    for tensor in model_tensors(model):
        if tensor.part in ("encoder", "decoder") and tensor.copies > 1:
            family = "experts" if tensor.experts else "dense"
            key = f"{tensor.part}.{family}" if ".ffn." in tensor.name or tensor.experts else tensor.part
            per_layer[key] = per_layer.get(key, 0) + tensor.count // tensor.copies
    feed_forward = max(per_layer.get("decoder.dense", 0), per_layer.get("decoder.experts", 0))
    return max(per_layer.get("decoder", 0) + feed_forward, per_layer.get("encoder", 0))


def _root_block(model: Model) -> int:
    """Embedding and head, gathered for the whole step."""
    return sum(tensor.count for tensor in model_tensors(model) if tensor.part == "embeddings")


# --- activations -------------------------------------------------------------------------------------------------------------


def activation_bytes(plan: StagePlan, machine: Hardware) -> float:
    """What the backward pass needs kept of one microbatch, the working set of one layer, and a chunk of logits."""
    model, mode, rows = plan.model, plan.layout.activation_checkpointing, plan.layout.microbatch_rows
    positions = rows * plan.batch.seq_len
    tiles = rows * plan.data.packing.images_per_row
    tokens = tiles * (patches(model.encoder, model.image.size) + 1)
    decoder = positions * (_decoder_kept(model, mode) + _decoder_kept(model, "none") / model.decoder.layers)
    encoder = tokens * _encoder_layer("none", model)  # working set of one layer, kept or not
    if "encoder" in model.trainable and model.lora is None:
        encoder += tokens * model.encoder.layers * _encoder_layer(mode, model)
    values = decoder + encoder + tiles * _connector_kept(model)
    logits = min(positions, LOGIT_CHUNK) * (model.decoder.vocab_size + model.decoder.added_tokens) * 2 * MASTER_BYTES
    return values * machine.compute_bytes + logits


def _decoder_kept(model: Model, mode: str) -> float:
    """Values kept per position over all layers. none: every input of a matmul or activation; selective: the matmuls' outputs; full: the
    layer's input."""
    decoder = model.decoder
    width, query, key = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    sparse = moe_layers(decoder)
    copies = decoder.layers + sparse * ((decoder.moe.top_k if decoder.moe else 1) - 1)  # feed-forwards that a position passes
    if mode == "full":
        return float(decoder.layers * width)
    if mode == "selective":
        return float(decoder.layers * (2 * width + 2 * query + 2 * key) + copies * 2 * decoder.ffn_width)
    return float(decoder.layers * (5 * width + 3 * query + 4 * key) + copies * (4 * decoder.ffn_width + width))


def _encoder_layer(mode: str, model: Model) -> float:
    """Values kept per patch of one layer; as the decoder's."""
    width, mlp = model.encoder.width, model.encoder.mlp_width
    if mode == "full":
        return float(width)
    return float(6 * width + mlp) if mode == "selective" else float(9 * width + 2 * mlp)


def _connector_kept(model: Model) -> float:
    """Values kept per encoded image; the connector is small and never recomputed."""
    connector, width = model.connector, model.encoder.width
    grid, out = patches(model.encoder, model.image.size), 2 * model.connector.tokens * model.decoder.width
    if connector.kind == "average_pool":
        return float(connector.tokens * width + out)
    if connector.kind == "c_abstractor":
        return float((grid + connector.tokens) * connector.depth * 9 * connector.hidden + grid * width + out)
    inner, keys = connector.heads * connector.head_dim, grid + connector.tokens
    layer = keys * (2 * width + 2 * inner) + connector.tokens * (3 * width + 2 * inner + 2 * connector.mlp_ratio * width)
    return float(resampler_depth(connector) * layer + out)
