"""What TorchX finds of us: `torchx run -s stagecoach_local ...`, `torchx run -s jobset ...`.

TorchX 0.7.0 reads the entry points `torchx.schedulers` and forgets its built-in schedulers as soon as one is registered, so pyproject.toml
lists those again beside ours. The newer registry (nightly 2026.10.26) reads the same entry points, adds the built-ins by itself, and also
looks for marked functions in modules of the namespace package `torchx_plugins.schedulers`; ours is in `torchx_plugins/schedulers/`.
"""

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stagecoach.contract.names import whole_number

if TYPE_CHECKING:
    from torchx.schedulers.api import Scheduler

Factory = Callable[..., "Scheduler[Any]"]
READS_ENTRY_POINTS = 2  # a bit of TORCHX_PLUGINS_SOURCE


def stagecoach_local(session_name: str, **_: object) -> "Scheduler[Any]":
    """TorchX's factory of the local scheduler; it passes parameters meant for other schedulers too."""
    from stagecoach.launch.local_scheduler import StagecoachLocalScheduler

    return StagecoachLocalScheduler(session_name)


def jobset(session_name: str, **_: object) -> "Scheduler[Any]":
    """TorchX's factory of the JobSet scheduler. No cluster is asked before something is submitted or looked at."""
    from stagecoach.launch.jobset.scheduler import JobsetScheduler

    return JobsetScheduler(session_name)


def registered(factory: Factory) -> Factory:
    """Marks `factory` for the newer registry where that does not read entry points (it warns about a name it finds by both ways)."""
    try:
        plugins = importlib.import_module("torchx.plugins")
    except ModuleNotFoundError:
        return factory  # TorchX 0.7.0
    sources = os.environ.get("TORCHX_PLUGINS_SOURCE", "3")
    if (whole_number(sources) or 0) & READS_ENTRY_POINTS:
        return factory
    marked: Factory = plugins.register.scheduler()(factory)
    return marked
