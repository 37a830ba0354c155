"""Our schedulers for TorchX's newer plugin registry, which collects functions *defined* in modules of this namespace package."""

from typing import Any

from stagecoach.launch import torchx_plugin


@torchx_plugin.registered
def stagecoach_local(session_name: str, **parameters: object) -> Any:
    """Detached processes on this machine."""
    return torchx_plugin.stagecoach_local(session_name, **parameters)


@torchx_plugin.registered
def jobset(session_name: str, **parameters: object) -> Any:
    """Gangs of pods as JobSets, queued by Kueue."""
    return torchx_plugin.jobset(session_name, **parameters)
