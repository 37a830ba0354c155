"""Hugging Face `config.json` to our plan and back. What we cannot run is refused by its name there."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from typing import Any, TypeVar

from stagecoach.contract.plan import Decoder, Encoder, RopeScaling
from stagecoach.contract.records import validate
from stagecoach.errors import ConfigError

DECODER_TYPES = {"llama": "llama", "qwen2": "qwen2", "phi3": "phi3"}
ENCODER_TYPES = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip"}
ACTIVATIONS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
NORM_EPS = {"clip": 1e-5, "siglip": 1e-6}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "phi3": "Phi3ForCausalLM"}


def layout_of(config: dict[str, Any], uri: str) -> str:
    """`llama`, `qwen2`, `phi3`, `clip` or `siglip`. Raises ConfigError for any other model type."""
    known = {**DECODER_TYPES, **ENCODER_TYPES}
    kind = config.get("model_type")
    if kind not in known:
        raise ConfigError(f"{uri}/config.json: model_type={kind!r} is no layout we read; known here: {', '.join(sorted(known))}")
    return known[str(kind)]


Plan = TypeVar("Plan", Encoder, Decoder)


def names_its_file(read: Callable[[dict[str, Any], str], Plan]) -> Callable[[dict[str, Any], str], Plan]:
    """A configuration with a field missing or of no use becomes a ConfigError that names file and field."""

    @wraps(read)
    def checked(config: dict[str, Any], uri: str) -> Plan:
        try:
            plan = read(config, uri)
        except KeyError as missing:
            raise ConfigError(f"{uri}/config.json has no {missing.args[0]}; copy it again from where the model was published") from missing
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"{uri}/config.json has a field of no use ({error}); copy it again from where the model was published"
            ) from error
        return validate(type(plan), asdict(plan), where=f"{uri}/config.json")

    return checked


@names_its_file
def encoder_from_config(config: dict[str, Any], uri: str) -> Encoder:
    """The vision tower that a CLIP or SigLIP configuration describes. Raises ConfigError for what we do not build."""
    layout = layout_of(config, uri)
    if layout not in ACTIVATIONS:
        raise ConfigError(f"{uri}/config.json: model_type={config['model_type']!r} is a language model; give it as the decoder")
    vision = {**VISION_DEFAULTS[layout], **config.get("vision_config", config)}
    if vision["hidden_act"] != ACTIVATIONS[layout]:
        raise ConfigError(f"{uri}/config.json: hidden_act={vision['hidden_act']!r}; {layout} is built with {ACTIVATIONS[layout]!r} only")
    return Encoder(
        layout="clip" if layout == "clip" else "siglip",
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_width=vision["intermediate_size"],
        patch_size=vision["patch_size"],
        image_size=vision["image_size"],
        norm_eps=vision["layer_norm_eps"],
    )


VISION_DEFAULTS: dict[str, dict[str, Any]] = {  # configurations on the hub leave out what equals the class's defaults
    "clip": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 32,
        "image_size": 224, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16,
        "image_size": 224, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip


@names_its_file
def decoder_from_config(config: dict[str, Any], uri: str) -> Decoder:
    """The language model that a Llama, Qwen2 or Phi-3 configuration describes. Raises ConfigError for what we do not build."""
    layout = layout_of(config, uri)
    if layout not in ARCHITECTURES:
        raise ConfigError(f"{uri}/config.json: model_type={config['model_type']!r} is a vision model; give it as the encoder")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{uri}/config.json: hidden_act={config['hidden_act']!r}; only silu (SwiGLU) is built")
    rope = _rope(config)
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"{uri}/config.json: partial_rotary_factor is not 1; decoders here turn the whole head")
    heads = config["num_attention_heads"]
    bias = bool(config.get("attention_bias", False))
    return Decoder(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn_width=config["intermediate_size"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=True if layout == "qwen2" else bias,
        output_bias=layout == "llama" and bias,
        ffn_bias=bool(config.get("mlp_bias", False)),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        rope_scaling=_scaling(rope, config, uri),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        sliding_window=_window(config, layout, uri),
        max_positions=config.get("max_position_embeddings", 4096),
    )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` beside each other (before)."""
    found: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def _scaling(rope: dict[str, Any], config: dict[str, Any], uri: str) -> RopeScaling | None:
    kind = {"su": "longrope"}.get(rope["rope_type"], rope["rope_type"])  # Phi-3's first name for it
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "longrope", "yarn"):
        raise ConfigError(f"{uri}/config.json: rope_type={kind!r} is not built; known here: default, linear, llama3, longrope, yarn")
    if strange := sorted(set(rope) - ROPE_FIELDS):
        raise ConfigError(f"{uri}/config.json: rope_parameters has {', '.join(strange)}, which is not built and would change every angle")
    if kind == "yarn" and rope.get("truncate") is False:
        raise ConfigError(f"{uri}/config.json: rope_parameters.truncate=false is not built; yarn's ramp here is between whole dimensions")
    positions = config.get("max_position_embeddings", 4096)
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or positions
    factor = float(rope.get("factor") or (positions / original if kind == "yarn" else 1.0))
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_positions=original,
        low_freq_factor=float(rope.get("low_freq_factor") or 1.0),
        high_freq_factor=float(rope.get("high_freq_factor") or 4.0),
        short_factors=tuple(float(f) for f in rope.get("short_factor") or ()),
        long_factors=tuple(float(f) for f in rope.get("long_factor") or ()),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=_attention_factor(rope, factor) if kind == "yarn" else rope.get("attention_factor"),
    )


ROPE_FIELDS = {
    "type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "partial_rotary_factor",
}  # fmt: skip


def _attention_factor(rope: dict[str, Any], factor: float) -> float | None:
    """yarn's: as stated, else from `mscale` and `mscale_all_dim` when both are there (DeepSeek's way), else None (derived from factor)."""
    stated: float | None = rope.get("attention_factor")
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if stated is not None or not (mscale and all_dim) or factor <= 1:
        return stated
    return (0.1 * mscale * math.log(factor) + 1) / (0.1 * all_dim * math.log(factor) + 1)


def _window(config: dict[str, Any], layout: str, uri: str) -> int | None:
    window: int | None = config.get("sliding_window")
    if layout != "qwen2" or window is None:
        return window if layout == "phi3" else None
    if not config.get("use_sliding_window", False):
        return None
    if config.get("max_window_layers", 0) > 0:
        raise ConfigError(f"{uri}/config.json: max_window_layers={config['max_window_layers']}: a window in some layers only is not built")
    return window


def decoder_to_config(plan: Decoder, layout: str) -> dict[str, Any]:
    """`config.json` of a decoder in this layout, as transformers 5 writes it."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[layout]],
        "model_type": layout,
        "vocab_size": plan.vocab_size + plan.added_tokens,
        "hidden_size": plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.kv_heads,
        "head_dim": plan.head_dim,
        "intermediate_size": plan.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": plan.norm_eps,
        "tie_word_embeddings": plan.tied_embeddings,
        "max_position_embeddings": plan.max_positions,
        "rope_parameters": _rope_to_config(plan),
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if layout == "llama":
        config |= {"attention_bias": plan.qkv_bias, "mlp_bias": plan.ffn_bias}
    elif layout == "qwen2":
        windowed = plan.sliding_window is not None
        config |= {"use_sliding_window": windowed, "sliding_window": plan.sliding_window}
        config["max_window_layers"] = 0 if windowed else plan.layers
    else:
        original = plan.rope_scaling.original_max_positions if plan.rope_scaling else plan.max_positions
        config |= {"sliding_window": plan.sliding_window, "original_max_position_embeddings": original}
    return config


def _rope_to_config(plan: Decoder) -> dict[str, Any]:
    scaling = plan.rope_scaling
    rope: dict[str, Any] = {"rope_type": scaling.kind if scaling else "default", "rope_theta": plan.rope_theta}
    if scaling is None:
        return rope
    rope["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "longrope":
        rope |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    else:
        rope["factor"] = scaling.factor
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.attention_factor is not None:
        rope["attention_factor"] = scaling.attention_factor
    return rope


def encoder_to_config(plan: Encoder) -> dict[str, Any]:
    """`config.json` of a vision tower, as transformers 5 writes it."""
    return {
        "architectures": ["CLIPVisionModel" if plan.layout == "clip" else "SiglipVisionModel"],
        "model_type": f"{plan.layout}_vision_model",
        "hidden_size": plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "intermediate_size": plan.mlp_width,
        "patch_size": plan.patch_size,
        "image_size": plan.image_size,
        "hidden_act": ACTIVATIONS[plan.layout],
        "layer_norm_eps": plan.norm_eps,
        **({"vision_use_head": False} if plan.layout == "siglip" else {}),
    }


def check_same(kind: str, ours: Encoder | Decoder, theirs: Encoder | Decoder, uri: str) -> None:
    """Raises ConfigError that lists where the plan and a configuration differ in what decides the numbers."""
    free = {"feature_layer", "added_tokens", "moe", "max_positions"}  # ours to choose
    aligned = replace(theirs, **{name: getattr(ours, name) for name in free if hasattr(ours, name)})
    names = [name for name in ours.__dataclass_fields__ if getattr(ours, name) != getattr(aligned, name)]
    if names:
        found = "; ".join(f"model.{kind}.{name}={getattr(ours, name)} where config.json has {getattr(aligned, name)}" for name in names)
        raise ConfigError(f"{uri} is another model than the plan: {found}. Change the plan or give the weights it was written for")
