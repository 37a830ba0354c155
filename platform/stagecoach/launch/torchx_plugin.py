"""What TorchX finds of us: `torchx run -s stagecoach_local ...`.

TorchX 0.7.0 reads the entry points `torchx.schedulers` and forgets its built-in schedulers as soon as one is registered, so pyproject.toml
lists those again beside ours. The newer registry (torchx nightlies of 2026) reads the same entry points, adds the built-ins by itself, and
also looks for functions marked by `torchx.plugins.register` in modules of the namespace package `torchx_plugins.schedulers`: `registered`
makes such a function of ours where that API exists.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchx.schedulers.api import Scheduler

Factory = Callable[..., "Scheduler[Any]"]


def stagecoach_local(session_name: str, **_: object) -> "Scheduler[Any]":
    """TorchX's factory of the local scheduler; it passes parameters meant for other schedulers too."""
    from stagecoach.launch.local_scheduler import StagecoachLocalScheduler

    return StagecoachLocalScheduler(session_name)


def registered(factory: Factory) -> Factory:
    """Marks `factory` for the newer registry; under TorchX 0.7.0 it is returned as it is."""
    try:
        plugins = importlib.import_module("torchx.plugins")
    except ModuleNotFoundError:
        return factory
    marked: Factory = plugins.register.scheduler()(factory)
    return marked
