"""Weights in: Hugging Face encoders and decoders into our modules, and our own exported folders back into a model."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from stagecoach.contract.names import whole_number
from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.contract.plan import Pretrained
from stagecoach.contract.records import validate
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.decoder import Decoder
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.vit import VisionEncoder
from stagecoach_workloads.weights.configs import check_same, decoder_from_config, encoder_from_config, layout_of
from stagecoach_workloads.weights.folder import Folder
from stagecoach_workloads.weights.layouts import Piece, decoder_pieces, encoder_pieces, unused_in_decoder, unused_in_encoder
from stagecoach_workloads.weights.loading import LoadReport, load_pieces
from stagecoach_workloads.weights.sources import SafetensorsFolder

MODEL_FORMAT = "stagecoach.model"
MODEL_VERSION = 1


def import_pretrained(model: MultimodalModel, init: Pretrained, beat: Callable[[], object] = lambda: None) -> dict[str, LoadReport]:
    """Fills the parts that `init` names; the others keep the values they have. Sharded models are filled shard by shard. `beat` is called
    for each tensor."""
    reports = {}
    if init.encoder is not None:
        reports["encoder"] = import_encoder(model.encoder, init.encoder, beat)
    if init.decoder is not None:
        reports["decoder"] = import_decoder(model.decoder, init.decoder, beat)
    return reports


def import_encoder(encoder: VisionEncoder, uri: str, beat: Callable[[], object] = lambda: None) -> LoadReport:
    """Loads a CLIP or SigLIP folder (a full model or its vision tower). Raises ConfigError when it is another model than the plan,
    CheckpointError when tensors are missing, unexpected or damaged."""
    with SafetensorsFolder(uri) as source:
        check_same("encoder", encoder.plan, encoder_from_config(source.folder.read_json("config.json"), uri), uri)
        prefix = "vision_model." if any(name.startswith("vision_model.") for name in source.shapes()) else ""
        pieces = encoder_pieces(encoder.plan)
        return load_pieces(encoder, pieces, source, prefix=prefix, ignore=lambda name: unused_in_encoder(name, encoder.plan), beat=beat)


def import_decoder(decoder: Decoder, uri: str, beat: Callable[[], object] = lambda: None) -> LoadReport:
    """Loads a Llama, Qwen2 or Phi-3 folder. Rows of added tokens become the mean of the others; experts copy the dense feed-forward
    when `moe.upcycle` (their routers keep their values). Raises as `import_encoder`, and for a tokenizer larger than the embedding."""
    with SafetensorsFolder(uri) as source:
        config = source.folder.read_json("config.json")
        check_same("decoder", decoder.plan, decoder_from_config(config, uri), uri)
        check_tokenizer(source.folder, decoder.plan)
        upcycle = decoder.plan.moe is not None and decoder.plan.moe.upcycle
        pieces = decoder_pieces(decoder.plan, layout_of(config, uri), upcycle=upcycle)
        return load_pieces(decoder, pieces, source, ignore=lambda name: unused_in_decoder(name, decoder.plan, upcycle=upcycle), beat=beat)


def check_tokenizer(folder: Folder, plan: DecoderPlan) -> None:
    """Raises ConfigError when the folder's tokenizer has ids beyond the embedding. Without a tokenizer.json there is nothing to check."""
    if "tokenizer.json" not in folder.names():
        return
    largest, rows = largest_token_id(folder), plan.vocab_size + plan.added_tokens
    if largest >= rows:
        raise ConfigError(
            f"{folder.uri}/tokenizer.json has token ids up to {largest}, but the embedding has {rows} rows (model.decoder.vocab_size="
            f"{plan.vocab_size} + added_tokens={plan.added_tokens}); set model.decoder.added_tokens={largest + 1 - plan.vocab_size}"
        )


def largest_token_id(folder: Folder) -> int:
    """The largest id in the folder's tokenizer.json, added tokens included; -1 for an empty one. Raises ConfigError when it is none."""
    tokenizer: dict[str, Any] = folder.read_json("tokenizer.json")
    try:
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        ids: Iterable[int] = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token["id"] for token in tokenizer.get("added_tokens", [])]
        return max(map(int, [*ids, *added]), default=-1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder.uri}/tokenizer.json is no tokenizer (wanted model.vocab and added_tokens with an id each: {error!r}); copy it again"
        ) from error


# --- our own folders ----------------------------------------------------------------------------------------------------------


def read_model_plan(folder: Folder) -> ModelPlan:
    """The plan in an exported folder's config.json. Raises ConfigError when it is not one of ours, or newer than this program."""
    config = folder.read_json("config.json")
    stated = str(config.get("format"))
    name, _, version = stated.rpartition("/")
    number = whole_number(version)
    if name != MODEL_FORMAT or number is None:
        raise ConfigError(
            f"{folder.uri}/config.json has format {stated!r}, not {MODEL_FORMAT}/{MODEL_VERSION}: "
            "give a folder that `stagecoach weights export` or `import` wrote"
        )
    if number > MODEL_VERSION:
        raise ConfigError(f"{folder.uri}/config.json has format {stated}, newer than {MODEL_FORMAT}/{MODEL_VERSION}; update Stagecoach")
    return validate(ModelPlan, config["model"], where=f"{folder.uri}/config.json")


def load_model(uri: str, *, device: torch.device | str = "cpu") -> MultimodalModel:
    """Builds and fills the model of an exported folder."""
    folder = Folder(uri)
    plan = read_model_plan(folder)
    check_tokenizer(folder, plan.decoder)
    model = build_model(plan, device=device, seed=None)
    load_own_weights(model, uri)
    return model


def load_own_weights(model: nn.Module, uri: str) -> LoadReport:
    """Fills a model, sharded or not, from a folder in our own names."""
    with SafetensorsFolder(uri) as source:
        return load_pieces(model, [Piece(ours=name, theirs=name) for name, _ in model.named_parameters()], source)
