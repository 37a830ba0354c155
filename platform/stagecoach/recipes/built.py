"""What a plan may ask for that does not exist yet. `stagecoach plan` costs it all the same and says so; a run of it is refused."""

from collections.abc import Callable, Iterator

from stagecoach.contract.plan import StagePlan

STAGES = {
    "interleaved": "multi-image fine-tuning from a single-image model (interleaved)",
    "dpo": "preference tuning (dpo)",
    "safety": "safety tuning",
}
LEAVE_OUT = "its costs stand; a run leaves it out with `stagecoach run --stages`"

# path -> (what, is it asked for, what to do meanwhile)
NOT_BUILT: dict[str, tuple[str, Callable[[StagePlan], bool], str]] = {
    "layout.tp": ("tensor parallelism", lambda stage: stage.layout.tp > 1, "set it to 1; the state is sharded over dp_shard instead"),
    "layout.ep": ("expert parallelism", lambda stage: stage.layout.ep > 1, "set it to 1; experts are sharded over dp_shard instead"),
    "model.lora": (
        "training low-rank adapters outside preference and safety tuning",
        lambda stage: stage.model.lora is not None and stage.kind not in STAGES,
        "train the decoder itself",
    ),
}


def not_built(stage: StagePlan) -> Iterator[tuple[str, str, str]]:
    """(path below the stage, what does not exist yet, what to do) for everything the stage asks for in vain."""
    if stage.kind in STAGES:
        yield "kind", STAGES[stage.kind], LEAVE_OUT
    for path, (what, asked, do) in NOT_BUILT.items():
        if asked(stage):
            yield path, what, do
