"""The papers as plain functions that return a frozen `PipelinePlan`. No torch: a laptop can resolve, check and cost them.

A recipe's keyword arguments are the axes its paper ablates, where one choice touches several fields; everything else is a field of the
plan, set by its dotted path. `stagecoach plan RECIPE --sources` says where each value comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from stagecoach.contract.plan import PipelinePlan
from stagecoach.contract.records import did_you_mean
from stagecoach.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe by name: where it lives, and its miniature."""

    family: str
    module: str
    miniature: str  # of a miniature: its own name

    @property
    def is_miniature(self) -> bool:
        return self.module.endswith(".tiny")


def _family(family: str, miniature: str, names: str) -> dict[str, Entry]:
    return {name: Entry(family, f"stagecoach.recipes.{family}", miniature) for name in names.split()}


RECIPES: dict[str, Entry] = {
    **_family("mm1", "mm1_tiny", "mm1_1b mm1_3b mm1_7b mm1_30b"),
    **_family("mm1", "mm1_tiny_moe", "mm1_3b_moe mm1_7b_moe"),
    **_family("mm1_5", "mm1_5_tiny", "mm1_5_1b mm1_5_3b mm1_5_7b mm1_5_30b mm1_5_1b_moe mm1_5_3b_moe"),
    **_family("blip3", "blip3_tiny", "blip3_4b"),
    "mm1_tiny": Entry("mm1", "stagecoach.recipes.tiny", "mm1_tiny"),
    "mm1_tiny_moe": Entry("mm1", "stagecoach.recipes.tiny", "mm1_tiny_moe"),
    "mm1_5_tiny": Entry("mm1_5", "stagecoach.recipes.tiny", "mm1_5_tiny"),
    "blip3_tiny": Entry("blip3", "stagecoach.recipes.tiny", "blip3_tiny"),
}


def recipe_function(name: str) -> Callable[..., PipelinePlan]:
    """The function of that name. Raises ConfigError with the nearest name when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe `{name}`{did_you_mean(name, list(RECIPES))}")
    function: Callable[..., PipelinePlan] = getattr(import_module(RECIPES[name].module), name)
    return function
