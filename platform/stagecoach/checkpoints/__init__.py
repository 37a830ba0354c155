"""Checkpoints as the control plane sees them: which there are, which may be read, whether their bytes are right, which can go.

No torch here. What is inside one is `stagecoach.contract.checkpoint`; writing and loading them is `stagecoach_workloads.checkpoints`.
"""

from stagecoach.checkpoints.listing import (
    Checkpoint,
    CheckpointRef,
    State,
    candidates,
    latest,
    latest_committed,
    list_checkpoints,
    quarantine,
)

__all__ = [
    "Checkpoint",
    "CheckpointRef",
    "State",
    "candidates",
    "latest",
    "latest_committed",
    "list_checkpoints",
    "quarantine",
]
