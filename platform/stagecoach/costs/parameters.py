"""Exact parameter counts: every tensor of the model, by part, from the plan alone.

The modules of `stagecoach_workloads.models` have these tensors and no others; a test there compares the two to the last parameter.

- **Vision transformer.** Patch convolution, position embedding over the grid of `encoder.image_size` (interpolated when another size
  is fed, so the shape never changes between stages), `layers` blocks of LayerNorm, attention with biases, LayerNorm, MLP with biases.
  `clip`: no patch bias, a class token with a position, a LayerNorm before the first block and none after the last (the connector
  reads the last block's patches as they are, as Honeybee does). `siglip`: a patch bias, no class token, a LayerNorm after the last
  block, no pooling head.
- **Connectors.** `c_abstractor`: Honeybee's over timm's RegStage. `perceiver`: open_flamingo's resampler and a linear read-out with bias
  (BLIP-3). `average_pool`: a linear with bias. `attention_pool`: one resampler layer whose keys are patches alone, and the same read-out.
- **Decoder.** RMSNorm before attention, before the feed-forward, and at the end; SwiGLU; biases only as the plan says; an expert layer has
  a router without bias; the head is the embedding's transpose unless `tied_embeddings` is false.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stagecoach.contract.plan import Connector, Decoder, Encoder, Model


@dataclass(frozen=True, slots=True)
class Tensor:
    """`copies` tensors of one shape and one name pattern (`*` stands for the layer)."""

    part: str  # "encoder", "connector", "decoder", "embeddings" or "lora"
    name: str
    shape: tuple[int, ...]
    copies: int = 1
    experts: int = 0  # the first dim counts experts, of which a token passes `top_k`
    top_k: int = 0

    @property
    def count(self) -> int:
        """Parameters in all copies."""
        return self.copies * math.prod(self.shape)

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        return self.count * self.top_k // self.experts if self.experts else self.count


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCount:
    """Counts of one model. `active` leaves out the experts a token does not pass; `non_embedding` is the decoder's N of scaling laws."""

    total: int
    active: int
    trainable: int
    non_embedding: int
    by_part: dict[str, int]


def count_parameters(model: Model) -> ParameterCount:
    """Exact, as integers."""
    tensors = model_tensors(model)
    by_part: dict[str, int] = {}
    for tensor in tensors:
        by_part[tensor.part] = by_part.get(tensor.part, 0) + tensor.count
    return ParameterCount(
        total=sum(by_part.values()),
        active=sum(tensor.active for tensor in tensors),
        trainable=sum(tensor.count for tensor in tensors if is_trainable(tensor, model)),
        non_embedding=by_part["decoder"],
        by_part=by_part,
    )


def is_trainable(tensor: Tensor, model: Model) -> bool:
    """With low-rank adapters everything else is frozen."""
    return tensor.part == "lora" if model.lora is not None else tensor.part in model.trainable


def is_between_layers(part: str, name: str, dims: int) -> bool:
    """Is it a matrix from one layer's features to another's, or a stack of them? Those are Muon's. Embeddings, the head, positions,
    adapters, convolutions, norms and biases are not."""
    if part in ("embeddings", "lora"):
        return False
    return name.endswith(".weight") if dims == 2 else dims == 3 and "position" not in name


def model_tensors(model: Model) -> list[Tensor]:
    """Every tensor: encoder, connector, decoder, embeddings (with an untied head), adapters."""
    return [
        *encoder_tensors(model.encoder),
        *connector_tensors(model.connector, model.encoder, model.decoder),
        *decoder_tensors(model.decoder),
        *lora_tensors(model),
    ]


# --- encoder -----------------------------------------------------------------------------------------------------------------


def patches(encoder: Encoder, image_size: int) -> int:
    """Patches of a square image; pixels beyond a whole patch are dropped, as a strided convolution does (SigLIP: 384 gives 27 x 27)."""
    side: int = image_size // encoder.patch_size
    return side**2


def encoder_tensors(encoder: Encoder) -> list[Tensor]:
    """Patch embedding, positions, blocks, norms."""
    width, siglip = encoder.width, encoder.layout == "siglip"
    positions = patches(encoder, encoder.image_size) + (0 if siglip else 1)
    found = [("patch_embedding.weight", (width, 3, encoder.patch_size, encoder.patch_size)), ("position_embedding", (positions, width))]
    found += [("patch_embedding.bias", (width,))] if siglip else [("class_embedding", (width,))]
    depth = encoder_depth(encoder)
    if not siglip:
        found += _norm("pre_norm", width)
    elif depth == encoder.layers:
        found += _norm("post_norm", width)
    stem = [Tensor("encoder", name, shape) for name, shape in found]
    return stem + [Tensor("encoder", f"layers.*.{name}", shape, depth) for name, shape in _vit_layer(encoder)]


def encoder_depth(encoder: Encoder) -> int:
    """Blocks that are built, those up to the chosen features; costed as the nearest one there is where a plan names none."""
    return min(max(feature_depth(encoder), 1), encoder.layers)


def feature_depth(encoder: Encoder) -> int:
    """The layer that `feature_layer` names, from 1: it counts as hidden states do, -1 is the last layer. May be none of the encoder's."""
    return encoder.feature_layer + encoder.layers + 1 if encoder.feature_layer < 0 else encoder.feature_layer


def _vit_layer(encoder: Encoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, mlp = encoder.width, encoder.mlp_width
    yield from _norm("norm_1", width)
    for name in ("q", "k", "v", "o"):
        yield from _linear(f"attention.{name}", width, width)
    yield from _norm("norm_2", width)
    yield from _linear("mlp.up", width, mlp)
    yield from _linear("mlp.down", mlp, width)


# --- connector ---------------------------------------------------------------------------------------------------------------


def connector_tensors(connector: Connector, encoder: Encoder, decoder: Decoder) -> list[Tensor]:
    """The tensors of whichever kind."""
    build = {
        "c_abstractor": _c_abstractor,
        "average_pool": _average_pool,
        "perceiver": _perceiver,
        "attention_pool": _perceiver,
    }[connector.kind]
    return [Tensor("connector", name, shape) for name, shape in build(connector, encoder, decoder)]


def _c_abstractor(connector: Connector, encoder: Encoder, decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Positions over the patches, RegNet stage, (average pool), RegNet stage, two-layer read-out."""
    hidden = connector.hidden
    yield "position_embedding", (1, patches(encoder, encoder.image_size), encoder.width)
    yield from _reg_stage("before", connector.depth, encoder.width, hidden)
    yield from _reg_stage("after", connector.depth, hidden, hidden)
    yield from _linear("readout.0", hidden, decoder.width)
    yield from _linear("readout.2", decoder.width, decoder.width)


def _reg_stage(name: str, depth: int, width_in: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Bottlenecks of timm's RegStage as Honeybee sets them: ratio 1, group size 1 (the 3 x 3 is depthwise), squeeze to a quarter of
    the block's *input*, LayerNorm2d after each convolution, a 1 x 1 shortcut where the width changes."""
    for block in range(depth):
        width = width_in if block == 0 else hidden
        squeeze = round(width * 0.25)
        here = f"{name}.{block}"
        for conv, shape in (("1", (hidden, width, 1, 1)), ("2", (hidden, 1, 3, 3)), ("3", (hidden, hidden, 1, 1))):
            yield f"{here}.conv{conv}.weight", shape
            yield from _norm(f"{here}.norm{conv}", hidden)
        yield from _linear(f"{here}.squeeze", hidden, squeeze)
        yield from _linear(f"{here}.excite", squeeze, hidden)
        if width != hidden:
            yield f"{here}.shortcut.weight", (hidden, width, 1, 1)
            yield from _norm(f"{here}.shortcut_norm", hidden)


def _average_pool(connector: Connector, encoder: Encoder, decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    del connector
    yield from _linear("readout", encoder.width, decoder.width)


def resampler_depth(connector: Connector) -> int:
    """Layers of a perceiver; an attention pool is one layer."""
    return connector.depth if connector.kind == "perceiver" else 1


def _perceiver(connector: Connector, encoder: Encoder, decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Latents, layers of cross-attention and feed-forward without biases, a final norm, a linear read-out with bias."""
    width, inner = encoder.width, connector.heads * connector.head_dim
    yield "latents", (connector.tokens, width)
    for layer in range(resampler_depth(connector)):
        yield from _norm(f"layers.{layer}.norm_media", width)
        yield from _norm(f"layers.{layer}.norm_latents", width)
        yield f"layers.{layer}.q.weight", (inner, width)
        yield f"layers.{layer}.kv.weight", (2 * inner, width)
        yield f"layers.{layer}.o.weight", (width, inner)
        yield from _norm(f"layers.{layer}.norm_ffn", width)
        yield f"layers.{layer}.ffn.up.weight", (connector.mlp_ratio * width, width)
        yield f"layers.{layer}.ffn.down.weight", (width, connector.mlp_ratio * width)
    yield from _norm("norm", width)
    yield from _linear("readout", width, decoder.width)


# --- decoder -----------------------------------------------------------------------------------------------------------------


def moe_layers(decoder: Decoder) -> int:
    """How many layers have experts: every `every`-th one."""
    return decoder.layers // decoder.moe.every if decoder.moe else 0


def decoder_tensors(decoder: Decoder) -> list[Tensor]:
    """Embedding and head (part `embeddings`), layers, final norm."""
    width, vocab = decoder.width, decoder.vocab_size + decoder.added_tokens
    found = [Tensor("embeddings", "embedding.weight", (vocab, width))]
    if not decoder.tied_embeddings:
        found.append(Tensor("embeddings", "head.weight", (vocab, width)))
    found.append(Tensor("decoder", "norm.weight", (width,)))
    found += [Tensor("decoder", f"layers.*.{name}", shape, decoder.layers) for name, shape in _attention(decoder)]
    return found + list(_feed_forward(decoder))


def _attention(decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, query, key = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    yield "norm_attention.weight", (width,)
    yield "norm_ffn.weight", (width,)
    for name, size in (("q", query), ("k", key), ("v", key)):
        yield f"attention.{name}.weight", (size, width)
        if decoder.qkv_bias:
            yield f"attention.{name}.bias", (size,)
    yield "attention.o.weight", (width, query)
    if decoder.output_bias:
        yield "attention.o.bias", (width,)


def _feed_forward(decoder: Decoder) -> Iterator[Tensor]:
    width, ffn, sparse = decoder.width, decoder.ffn_width, moe_layers(decoder)
    shapes = {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
    if decoder.layers > sparse:
        for name, shape in shapes.items():
            yield Tensor("decoder", f"layers.*.ffn.{name}.weight", shape, decoder.layers - sparse)
            if decoder.ffn_bias:
                yield Tensor("decoder", f"layers.*.ffn.{name}.bias", shape[:1], decoder.layers - sparse)
    if decoder.moe and sparse:
        moe = decoder.moe
        yield Tensor("decoder", "layers.*.router.weight", (moe.experts, width), sparse)
        for name, shape in shapes.items():
            yield Tensor("decoder", f"layers.*.experts.{name}", (moe.experts, *shape), sparse, moe.experts, moe.top_k)


def lora_tensors(model: Model) -> list[Tensor]:
    """Two low-rank factors per adapted linear of each layer; experts are not adapted."""
    if model.lora is None:
        return []
    decoder, rank = model.decoder, model.lora.rank
    width, query, key = decoder.width, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    ffn, dense = decoder.ffn_width, decoder.layers - moe_layers(decoder)
    sizes = {
        "q": (width, query, decoder.layers), "k": (width, key, decoder.layers), "v": (width, key, decoder.layers),
        "o": (query, width, decoder.layers), "gate": (width, ffn, dense), "up": (width, ffn, dense), "down": (ffn, width, dense),
    }  # fmt: skip
    found = []
    for target in model.lora.targets:
        size_in, size_out, copies = sizes[target]
        for name, shape in (("a", (rank, size_in)), ("b", (size_out, rank))):
            found.append(Tensor("lora", f"layers.*.{target}.{name}", shape, copies))
    return found


def _norm(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    """A LayerNorm."""
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _linear(name: str, size_in: int, size_out: int) -> list[tuple[str, tuple[int, ...]]]:
    """A linear with bias."""
    return [(f"{name}.weight", (size_out, size_in)), (f"{name}.bias", (size_out,))]
