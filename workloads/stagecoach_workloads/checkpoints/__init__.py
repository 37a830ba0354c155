"""Checkpoints of a training job: copied to host memory, written by a process beside the rank, read back block by block.

    checkpoints = Checkpoints(context, identity=..., mesh=..., fingerprints=..., keep=3, keep_every_steps=None)
    values = checkpoints.restore(state)          # newest good one into `state`, or None
    ...
    checkpoints.before_update(); optimizer.step()  # the gate: nothing changes under a copy that is under way
    checkpoints.save(step, state)                # returns at once

`state.py` says what is saved, `layout.py` where each tensor lies, `staging.py` copies, `link.py` and `saver.py` are the two ends of the
saving process, `reading.py` and `loading.py` the way back, `agreement.py` how ranks come to one verdict. The protocol is that of
reliability.md section 1. This package imports torch only on use: the saving process does without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagecoach_workloads.checkpoints.checkpoints import Checkpoints
    from stagecoach_workloads.checkpoints.settings import CheckpointSettings
    from stagecoach_workloads.checkpoints.state import CheckpointState, LoadedValues

__all__ = ["CheckpointSettings", "CheckpointState", "Checkpoints", "LoadedValues"]

_HOMES = {"Checkpoints": "checkpoints", "CheckpointSettings": "settings", "CheckpointState": "state", "LoadedValues": "state"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
