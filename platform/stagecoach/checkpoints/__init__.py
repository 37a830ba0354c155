"""Checkpoints as the control plane sees them: which there are, which may be read, whether their bytes are right, which can go.

No torch here. What is inside one is `stagecoach.contract.checkpoint`; writing and loading them is `stagecoach_workloads.checkpoints`.
"""

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.gc import Collected, Decision, collect
from stagecoach.checkpoints.holds import Lease, LeaseWatch, pin
from stagecoach.checkpoints.listing import (
    Checkpoint,
    CheckpointRef,
    State,
    candidates,
    checkpoint_ref,
    latest,
    latest_committed,
    list_checkpoints,
    quarantine,
)
from stagecoach.checkpoints.manifest import DamagedCheckpoint, ForeignCheckpoint, NewerCheckpoint, read_manifest
from stagecoach.checkpoints.tensors import WeightsDigest, weights_digest
from stagecoach.checkpoints.verify import BadCheckpoint, Problem, Verified, newest_good, verify, why_none

__all__ = [
    "BadCheckpoint",
    "Checkpoint",
    "CheckpointRef",
    "Collected",
    "DamagedCheckpoint",
    "Decision",
    "ForeignCheckpoint",
    "Lease",
    "LeaseWatch",
    "NewerCheckpoint",
    "Problem",
    "State",
    "Verified",
    "WeightsDigest",
    "candidates",
    "checkpoint_at",
    "checkpoint_ref",
    "collect",
    "latest",
    "latest_committed",
    "list_checkpoints",
    "newest_good",
    "pin",
    "quarantine",
    "read_manifest",
    "verify",
    "weights_digest",
    "why_none",
]
