"""The module that TorchX's newer registry finds. TorchX 0.7.0 has no such registry: its decorator is stood in for, as it is published."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import stagecoach

FOUND_AT = Path(stagecoach.__file__).parents[1] / "torchx_plugins/schedulers/stagecoach.py"
NAME = "torchx_plugins.schedulers.stagecoach"


def scheduler() -> Callable[[Any], Any]:
    """`torchx.plugins.register.scheduler()`."""

    def mark(factory: Any) -> Any:
        factory._plugin_type, factory._plugin_name = "torchx.schedulers", factory.__name__
        return factory

    return mark


def listed(monkeypatch: pytest.MonkeyPatch, sources: str) -> dict[str, Callable[..., Any]]:
    """What the registry collects: marked functions that the module itself defines."""
    plugins = ModuleType("torchx.plugins")
    plugins.register = SimpleNamespace(scheduler=scheduler)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchx.plugins", plugins)
    monkeypatch.setenv("TORCHX_PLUGINS_SOURCE", sources)
    spec = importlib.util.spec_from_file_location(NAME, FOUND_AT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [thing for thing in vars(module).values() if hasattr(thing, "_plugin_type") and thing.__module__ == NAME]
    return {thing._plugin_name: thing for thing in found}


def test_a_registry_that_reads_modules_alone_lists_our_schedulers_and_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(monkeypatch, sources="1")
    made = {name: factory("session", image_type="of another scheduler") for name, factory in found.items()}
    assert {name: one.backend for name, one in made.items()} == {"stagecoach_local": "stagecoach_local", "jobset": "jobset"}


@pytest.mark.parametrize("sources", ["2", "3"])
def test_a_registry_that_reads_entry_points_too_finds_each_of_them_once(monkeypatch: pytest.MonkeyPatch, sources: str) -> None:
    assert listed(monkeypatch, sources) == {}
