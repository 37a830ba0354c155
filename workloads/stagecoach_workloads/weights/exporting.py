"""Weights out: a whole model as a folder with all it needs, or its parts in Hugging Face layouts. Written shard by shard."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import Encoder as EncoderPlan
from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.contract.records import to_plain
from stagecoach.errors import ConfigError
from stagecoach_workloads.weights.card import ModelFacts, model_card
from stagecoach_workloads.weights.configs import decoder_to_config, encoder_to_config
from stagecoach_workloads.weights.folder import Folder
from stagecoach_workloads.weights.importing import MODEL_FORMAT, MODEL_VERSION, check_tokenizer
from stagecoach_workloads.weights.layouts import Piece, decoder_pieces, encoder_pieces
from stagecoach_workloads.weights.sources import INDEX, TensorSource

SHARD_BYTES = 4 * 2**30
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

NamedTensors = Iterator[tuple[str, Tensor]]


def export_model(
    source: TensorSource, plan: ModelPlan, target: str, *, facts: ModelFacts, tokenizer: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a model (merged: without adapters) as safetensors in our names, config.json, preprocessor_config.json, the tokenizer's
    files and a model card. config.json comes last, so a folder that has one is complete.

    Raises ConfigError when the source has adapters that were not merged, or the tokenizer has ids beyond the embedding.
    """
    names = list(source.shapes())
    if any(".lora_" in name for name in names):
        raise ConfigError(f"{source.uri} has low-rank adapters; merge them first (stagecoach_workloads.models.lora.merge_lora)")
    plan = replace(plan, lora=None)
    config = {
        "format": f"{MODEL_FORMAT}/{MODEL_VERSION}",
        "architectures": ["StagecoachMultimodalModel"],
        "model_type": "stagecoach_multimodal",
        "model": to_plain(plan),
        "training": {name: value for name, value in asdict(facts).items() if value},
    }
    folder = open_target(target, config, source.uri)
    if tokenizer is not None:
        copy_tokenizer(Folder(tokenizer), folder, plan.decoder)
    write_shards(folder, ((name, source.read(name)) for name in names), shard_bytes)
    folder.publish_json("preprocessor_config.json", processor_settings(plan))
    folder.publish("README.md", model_card(plan, facts).encode())
    folder.publish_json("config.json", config)


def open_target(uri: str, config: dict[str, Any], source_uri: str) -> Folder:
    """The folder to write to, without what an export that was cut off, or one of the same configuration, left there: a stale index
    would name stale shards. Its config.json goes first, so that no half-written folder looks whole.

    Raises ConfigError when the weights come from there, or another model is there.
    """
    folder = Folder(uri)
    if folder.uri == source_uri:
        raise ConfigError(f"{uri} is where the weights come from; give another folder to write to")
    there = folder.present()
    if "config.json" in there and folder.read_json("config.json") != json.loads(json.dumps(config)):
        raise ConfigError(f"{uri} holds another model (its config.json differs); give a new folder, or remove this one")
    stale = [name for name in there if name == INDEX or name.endswith(".safetensors")]
    for name in ("config.json", *stale):
        folder.delete(name)
    return folder


def export_encoder(
    source: TensorSource, plan: EncoderPlan, target: str, *, prefix: str = "encoder.", shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a vision tower that `transformers` loads as CLIPVisionModel or SiglipVisionModel.

    CLIP's norm after the last block, which our features never pass, is written as one that changes nothing.
    """
    if plan.feature_layer not in (-1, plan.layers):
        raise ConfigError(f"model.encoder.feature_layer={plan.feature_layer}: layers after it were never built, so the tower is not whole")
    config = encoder_to_config(plan)
    folder = open_target(target, config, source.uri)
    write_shards(folder, _encoder_tensors(source, plan, prefix), shard_bytes)
    folder.publish_json("config.json", config)


def export_decoder(
    source: TensorSource,
    plan: DecoderPlan,
    target: str,
    *,
    layout: str,
    prefix: str = "decoder.",
    tokenizer: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a language model that `transformers` loads as Llama, Qwen2 or Phi-3. Raises ConfigError for what the layout cannot hold."""
    if plan.moe is not None:
        raise ConfigError(f"layout {layout!r} has no experts (model.decoder.moe is set); export the whole model instead")
    pieces, config = decoder_pieces(plan, layout), decoder_to_config(plan, layout)
    folder = open_target(target, config, source.uri)
    if tokenizer is not None:
        copy_tokenizer(Folder(tokenizer), folder, plan)
    write_shards(folder, fuse(source, pieces, prefix), shard_bytes)
    folder.publish_json("config.json", config)


def fuse(source: TensorSource, pieces: list[Piece], prefix: str) -> NamedTensors:
    """Their tensors, put together from ours: one after the other, fused ones by their row ranges."""
    parts: dict[str, list[Piece]] = {}
    for piece in pieces:
        parts.setdefault(piece.theirs, []).append(piece)
    for theirs, ours in parts.items():
        tensors = [source.read(prefix + piece.ours) for piece in sorted(ours, key=lambda piece: piece.start)]
        yield theirs, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _encoder_tensors(source: TensorSource, plan: EncoderPlan, prefix: str) -> NamedTensors:
    yield from (("vision_model." + name, tensor) for name, tensor in fuse(source, encoder_pieces(plan), prefix))
    if plan.layout == "clip":
        yield "vision_model.post_layernorm.weight", torch.ones(plan.width)
        yield "vision_model.post_layernorm.bias", torch.zeros(plan.width)


def write_shards(folder: Folder, tensors: NamedTensors, shard_bytes: int) -> None:
    """Writes safetensors of at most `shard_bytes` (one tensor at least), and an index when there are several. Holds one shard at a time."""
    weight_map: dict[str, str] = {}
    waiting: dict[str, Tensor] = {}
    size, total, shards = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="stagecoach-weights-") as scratch:
        path = Path(scratch) / "shard.safetensors"

        def flush(name: str) -> None:
            save_file(waiting, path, metadata={"format": "pt"})
            folder.publish_file(name, path)
            weight_map.update(dict.fromkeys(waiting, name))
            waiting.clear()

        for name, tensor in tensors:
            if waiting and size + tensor.nbytes > shard_bytes:
                shards, size = shards + 1, 0
                flush(f"model-{shards:05d}.safetensors")
            waiting[name] = tensor.detach().cpu().contiguous().clone()
            size, total = size + tensor.nbytes, total + tensor.nbytes
        flush(f"model-{shards + 1:05d}.safetensors" if shards else "model.safetensors")
    if shards:
        folder.publish_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_tokenizer(source: Folder, target: Folder, plan: DecoderPlan) -> None:
    """Copies a tokenizer's files. Raises ConfigError when there is no tokenizer.json or it has ids beyond the embedding."""
    names = source.names()
    if "tokenizer.json" not in names:
        raise ConfigError(f"{source.uri} has no tokenizer.json; give the folder of the tokenizer that the model was trained with")
    check_tokenizer(source, plan)
    for name in TOKENIZER_FILES:
        if name in names:
            target.publish(name, source.read(name))


def processor_settings(plan: ModelPlan) -> dict[str, Any]:
    """How an image becomes what the encoder is fed, for whoever serves the model."""
    image = plan.image
    return {
        "image_processor_type": "StagecoachImageProcessor",
        "size": {"height": image.size, "width": image.size},
        "fit": image.fit,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "split": to_plain(image.split),
        "mask_padding": image.mask_padding,
        "tokens_per_image": plan.connector.tokens,
    }
