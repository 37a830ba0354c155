"""Which tensor of a Hugging Face checkpoint is which of ours. Names and row ranges only; no tensor is touched here.

Layouts: CLIP and SigLIP vision towers; Llama, Qwen2 (also Qwen2.5) and Phi-3 (fused projections) decoders.
"""

from dataclasses import dataclass

from stagecoach.contract.plan import Decoder, Encoder
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.decoder import is_sparse_layer
from stagecoach_workloads.models.vit import feature_depth

DECODER_LAYOUTS = ("llama", "qwen2", "phi3")
ENCODER_LAYOUTS = ("clip", "siglip")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Our tensor `ours` is rows [start, stop) of their tensor `theirs`; all of it when `stop` is None.

    `grows`: ours may have more rows than theirs, since the vocabulary grew. `experts`: ours are copies (up-cycling), transposed.
    """

    ours: str
    theirs: str
    start: int = 0
    stop: int | None = None
    grows: bool = False
    experts: bool = False


def encoder_pieces(plan: Encoder) -> list[Piece]:
    """Every tensor of `VisionEncoder(plan)`, under names that start after a checkpoint's optional `vision_model.`."""
    clip = plan.layout == "clip"
    pairs = [("patch.weight", "embeddings.patch_embedding.weight"), ("position", "embeddings.position_embedding.weight")]
    if clip:
        pairs += [("class_embedding", "embeddings.class_embedding"), *_affine("pre_norm", "pre_layrnorm")]
    else:
        pairs += [("patch.bias", "embeddings.patch_embedding.bias")]
    depth = feature_depth(plan)
    for layer in range(depth):
        ours, theirs = f"blocks.{layer}", f"encoder.layers.{layer}"
        pairs += _affine(f"{ours}.attention_norm", f"{theirs}.layer_norm1")
        pairs += _affine(f"{ours}.mlp_norm", f"{theirs}.layer_norm2")
        for short, long in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            pairs += _affine(f"{ours}.attention.{short}", f"{theirs}.self_attn.{long}")
        pairs += _affine(f"{ours}.mlp.up", f"{theirs}.mlp.fc1")
        pairs += _affine(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    if not clip and depth == plan.layers:
        pairs += _affine("post_norm", "post_layernorm")
    return [Piece(ours=ours, theirs=theirs) for ours, theirs in pairs]


def unused_in_encoder(name: str, plan: Encoder) -> bool:
    """True for tensors of a checkpoint that features of patches do not need: text tower, pooled output, layers past the chosen one."""
    bare = name.removeprefix("vision_model.")
    if bare.startswith(
        ("post_layernorm.", "head.", "text_model.", "visual_projection.", "text_projection.", "logit_", "embeddings.position_ids")
    ):
        return True
    if bare.startswith("encoder.layers."):
        return int(bare.split(".")[2]) >= feature_depth(plan)
    return False


def decoder_pieces(plan: Decoder, layout: str, *, upcycle: bool = False) -> list[Piece]:
    """Every tensor of `Decoder(plan)` that a dense checkpoint of this layout holds; routers have no source.

    `upcycle`: sparse layers' experts come from the dense feed-forward. Raises ConfigError for a layout we do not know or cannot fill.
    """
    check_decoder_layout(plan, layout)
    pieces = [
        Piece(ours="embed.weight", theirs="model.embed_tokens.weight", grows=True),
        Piece(ours="norm.weight", theirs="model.norm.weight"),
    ]
    if not plan.tied_embeddings:
        pieces.append(Piece(ours="head.weight", theirs="lm_head.weight", grows=True))
    for layer in range(plan.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        pieces.append(Piece(ours=f"{ours}.attention_norm.weight", theirs=f"{theirs}.input_layernorm.weight"))
        pieces.append(Piece(ours=f"{ours}.ffn_norm.weight", theirs=f"{theirs}.post_attention_layernorm.weight"))
        pieces += _attention(plan, layout, ours, theirs)
        sparse = is_sparse_layer(plan, layer)
        if upcycle or not sparse:
            pieces += _feed_forward(plan, layout, ours, theirs, experts=sparse)
    return pieces


def unused_in_decoder(name: str, plan: Decoder, *, upcycle: bool = False) -> bool:
    """True for tensors of a checkpoint that repeat or precompute something (a tied head, rotary frequencies), and for the dense
    feed-forwards of layers that are sparse here and start anew."""
    if name.endswith("rotary_emb.inv_freq") or (plan.tied_embeddings and name == "lm_head.weight"):
        return True
    parts = name.split(".")
    return not upcycle and parts[1:2] == ["layers"] and parts[3:4] == ["mlp"] and is_sparse_layer(plan, int(parts[2]))


def check_decoder_layout(plan: Decoder, layout: str) -> None:
    """Raises ConfigError when the layout is unknown or has no place for something this decoder has."""
    if layout not in DECODER_LAYOUTS:
        raise ConfigError(f"unknown decoder layout {layout!r}; known here: {', '.join(DECODER_LAYOUTS)}")
    biases = {"qkv_bias": plan.qkv_bias, "output_bias": plan.output_bias, "ffn_bias": plan.ffn_bias}
    wanted = {
        "llama": {**biases, "output_bias": plan.qkv_bias},  # Llama's attention_bias is one switch for all four
        "qwen2": {"qkv_bias": True, "output_bias": False, "ffn_bias": False},
        "phi3": {"qkv_bias": False, "output_bias": False, "ffn_bias": False},
    }[layout]
    for name, value in biases.items():
        if value != wanted[name]:
            raise ConfigError(f"decoder.{name}={value} does not fit layout {layout!r}, which has {name}={wanted[name]}; use another layout")


def _attention(plan: Decoder, layout: str, ours: str, theirs: str) -> list[Piece]:
    queries, keys = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
    output = Piece(ours=f"{ours}.attention.o.weight", theirs=f"{theirs}.self_attn.o_proj.weight")
    if layout == "phi3":
        fused, ends = f"{theirs}.self_attn.qkv_proj.weight", (0, queries, queries + keys, queries + 2 * keys)
        parts = zip(("q", "k", "v"), ends, ends[1:], strict=False)
        return [Piece(ours=f"{ours}.attention.{name}.weight", theirs=fused, start=a, stop=b) for name, a, b in parts] + [output]
    pieces = [output]
    for name in ("q", "k", "v"):
        leaves = ("weight", "bias") if plan.qkv_bias else ("weight",)
        pieces += [Piece(ours=f"{ours}.attention.{name}.{leaf}", theirs=f"{theirs}.self_attn.{name}_proj.{leaf}") for leaf in leaves]
    if plan.output_bias:
        pieces.append(Piece(ours=f"{ours}.attention.o.bias", theirs=f"{theirs}.self_attn.o_proj.bias"))
    return pieces


def _feed_forward(plan: Decoder, layout: str, ours: str, theirs: str, *, experts: bool) -> list[Piece]:
    leaf, width = "" if experts else ".weight", plan.ffn_width
    down = Piece(ours=f"{ours}.ffn.down{leaf}", theirs=f"{theirs}.mlp.down_proj.weight", experts=experts)
    if layout == "phi3":
        fused = f"{theirs}.mlp.gate_up_proj.weight"
        return [
            Piece(ours=f"{ours}.ffn.gate{leaf}", theirs=fused, start=0, stop=width, experts=experts),
            Piece(ours=f"{ours}.ffn.up{leaf}", theirs=fused, start=width, stop=2 * width, experts=experts),
            down,
        ]
    pieces = [Piece(ours=f"{ours}.ffn.{name}{leaf}", theirs=f"{theirs}.mlp.{name}_proj.weight", experts=experts) for name in ("gate", "up")]
    if plan.ffn_bias:
        pieces += [Piece(ours=f"{ours}.ffn.{name}.bias", theirs=f"{theirs}.mlp.{name}_proj.bias") for name in ("gate", "up", "down")]
    return [*pieces, down]


def _affine(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in ("weight", "bias")]
