"""Forks: which stages they have, what they begin with, and what is refused."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.cli.read import explain_command
from stagecoach.contract.plan import Parent, Steps
from stagecoach.errors import CheckpointError, ConfigError
from stagecoach.site import Site
from stagecoach.stages.compare import compare_runs
from stagecoach.stages.control import request_of
from stagecoach.stages.fork import ForkRequest, fork
from stagecoach.stages.pipeline import pin_stage
from stagecoach.stages.recover import find_abandoned

from .conftest import World


def test_a_fork_begins_with_the_pinned_checkpoint_and_new_settings_and_leaves_the_other_run_alone(world: World) -> None:
    first = {one["stage"]: one for one in world.run()}
    made = fork(world.runs, ForkRequest(run_id="toy", stage="sft", at=4, new_run_id="b", settings=("sft.steps=6",)), Site())
    assert (made.stages, made.run.forked_from) == (("sft",), first["sft"]["checkpoint"])
    init = pin_stage(made, "sft").init
    assert isinstance(init, Parent)
    assert init.checkpoint == first["sft"]["checkpoint"]
    (second,) = world.resume("b")
    assert second["steps"] == 6
    assert second["weights_digest"] != first["sft"]["weights_digest"]
    assert [one["was_done"] for one in world.resume("toy")] == [True, True]
    pins = world.runs.stage(world.runs.run("toy"), "sft").store  # type: ignore[arg-type]
    assert any(info.key.endswith("b.json") for info in pins.list(""))
    compared = {one.stage: one for one in compare_runs(world.runs, "toy", "b")}
    assert list(compared) == ["sft"]
    assert ("duration.steps", 4, 6) in compared["sft"].plan
    assert compared["sft"].same_weights is False


def test_a_fork_of_what_is_not_there_is_refused_with_what_is(world: World) -> None:
    world.run()
    with pytest.raises(ConfigError, match="there are steps 4"):
        fork(world.runs, ForkRequest(run_id="toy", stage="sft", at=3), Site())
    with pytest.raises(ConfigError, match="has the stages pretrain, sft"):
        fork(world.runs, ForkRequest(run_id="toy", stage="video"), Site())
    with pytest.raises(ConfigError, match="that run exists"):
        fork(world.runs, ForkRequest(run_id="toy", stage="sft", new_run_id="toy"), Site())


def test_a_fork_has_its_stage_and_those_after_it_whatever_the_run_was_last_asked_for(world: World) -> None:
    for asked in ("pretrain", "sft"):
        world.run(stages=(asked,))
    assert fork(world.runs, ForkRequest(run_id="toy", stage="pretrain", new_run_id="a"), Site()).stages == ("pretrain", "sft")
    world.run(stages=("pretrain",))
    assert fork(world.runs, ForkRequest(run_id="toy", stage="sft", new_run_id="b"), Site()).stages == ("sft",)
    assert request_of(world.runs, "b").stages == ("sft",)


def test_a_forks_settings_win_over_the_other_runs_options_and_over_parts_of_them(world: World) -> None:
    world.run(ranks_per_node=2)
    settings = ("sft.layout.ranks_per_node=1", 'sft.duration={"kind": "steps", "steps": 2}')
    made = fork(world.runs, ForkRequest(run_id="toy", stage="sft", new_run_id="b", settings=settings), Site())
    assert (made.plan("sft").layout.ranks, made.plan("sft").duration) == (1, Steps(steps=2))
    kept = fork(world.runs, ForkRequest(run_id="toy", stage="pretrain", new_run_id="c"), Site())
    assert [plan.layout.ranks for plan in kept.plans] == [2, 2]


def test_a_fork_whose_caller_died_before_its_request_was_kept_is_made_by_the_same_command(world: World) -> None:
    world.run()
    wanted = ForkRequest(run_id="toy", stage="sft", new_run_id="b")
    fork(world.runs, wanted, Site())
    world.runs.store.delete("runs/b/request.json")
    with pytest.raises(ConfigError, match="that run exists"):
        fork(world.runs, replace(wanted, stage="pretrain"), Site())
    fork(world.runs, wanted, Site())
    assert request_of(world.runs, "b").stages == ("sft",)
    with pytest.raises(ConfigError, match="that run exists"):
        fork(world.runs, wanted, Site())


def test_a_fork_whose_checkpoint_was_removed_says_which_setting_names_it(world: World) -> None:
    world.run()
    made = fork(world.runs, ForkRequest(run_id="toy", stage="sft", new_run_id="b"), Site())
    ref = checkpoint_at(made.run.forked_from or "")[1]
    stage = world.runs.stage(world.runs.run("toy"), "sft")  # type: ignore[arg-type]
    stage.store.delete(f"{ref.key}/COMMITTED")
    with pytest.raises(CheckpointError, match=r"sft\.init\.checkpoint: .*COMMITTED is missing.*fork anew"):
        world.resume("b")


def test_a_fork_that_nobody_started_is_left_to_whoever_made_it(world: World) -> None:
    world.run()
    fork(world.runs, ForkRequest(run_id="toy", stage="pretrain", new_run_id="b"), Site())
    assert find_abandoned(world.runs, watch_s=0) == []
    told = CliRunner().invoke(explain_command, ["b", "--root", world.root], catch_exceptions=False)
    assert "`stagecoach resume b` starts it" in told.output
    with pytest.raises(ConfigError, match="has frozen another plan"):  # it would begin with random weights
        world.run(run_id="b")
