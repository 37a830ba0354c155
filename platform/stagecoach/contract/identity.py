"""A plan's two hashes (architecture.md section 3). Identity names the job and must match on resume; layout may differ per attempt."""

import hashlib
from typing import Any

from stagecoach.contract.plan import Model, StagePlan
from stagecoach.contract.records import canonical_json, to_plain

LAYOUT_FIELDS = ("layout", "checkpoint", "evaluation", "resources")  # how and where it runs, not what is learned


def identity_fields(plan: StagePlan) -> dict[str, Any]:
    """What decides the weights: model, data, batch, optimizer, schedule, seed, duration, init, loss, code bundle. Not where a thing
    lies: a dataset's and a tokenizer's fingerprint, and the parent checkpoint's digest, say what is in it."""
    plain: dict[str, Any] = {key: value for key, value in to_plain(plan).items() if key not in LAYOUT_FIELDS}
    for dataset in plain["data"]["datasets"]:
        for key in ("uri", "validation_uri", "stats"):
            dataset.pop(key)
    if plain["data"]["tokenizer_fingerprint"] is not None:
        plain["data"].pop("tokenizer")
    if plain["init"]["kind"] == "parent":
        plain["init"].pop("checkpoint")
    return plain


def identity_hash(plan: StagePlan) -> str:
    """SHA-256 (hex) over the identity fields."""
    return hashlib.sha256(canonical_json(identity_fields(plan))).hexdigest()


def layout_hash(plan: StagePlan) -> str:
    """SHA-256 (hex) over the layout fields."""
    plain = to_plain(plan)
    return hashlib.sha256(canonical_json({key: plain[key] for key in LAYOUT_FIELDS})).hexdigest()


def model_fields(model: Model) -> dict[str, Any]:
    """What decides the shapes and meaning of weights. How images are cut into tiles is not among it."""
    return {key: value for key, value in to_plain(model).items() if key in ("encoder", "connector", "decoder")}


def weight_fields(model: Model) -> dict[str, Any]:
    """`model_fields` without the resolution: a child may have another than its parent, whose position embeddings are interpolated."""
    fields = model_fields(model)
    return {**fields, "encoder": {key: value for key, value in fields["encoder"].items() if key != "image_size"}}


def model_fingerprint(model: Model) -> str:
    """SHA-256 (hex) over the model's fields."""
    return hashlib.sha256(canonical_json(model_fields(model))).hexdigest()
