"""A plan's two hashes (architecture.md section 3). Identity names the job and must match on resume; layout may differ per attempt."""

import hashlib
from typing import Any

from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import canonical_json, to_plain

LAYOUT_FIELDS = ("layout", "checkpoint", "evaluation", "resources")  # how and where it runs, not what is learned


def identity_fields(plan: StagePlan) -> dict[str, Any]:
    """What decides the weights: model, data (URIs apart: the fingerprint says what is in them), batch, optimizer, schedule, seed,
    duration, init, loss, code bundle."""
    plain: dict[str, Any] = {key: value for key, value in to_plain(plan).items() if key not in LAYOUT_FIELDS}
    for dataset in plain["data"]["datasets"]:
        for key in ("uri", "stats"):
            dataset.pop(key)
    return plain


def identity_hash(plan: StagePlan) -> str:
    """SHA-256 (hex) over the identity fields."""
    return hashlib.sha256(canonical_json(identity_fields(plan))).hexdigest()


def layout_hash(plan: StagePlan) -> str:
    """SHA-256 (hex) over the layout fields."""
    plain = to_plain(plan)
    return hashlib.sha256(canonical_json({key: plain[key] for key in LAYOUT_FIELDS})).hexdigest()
