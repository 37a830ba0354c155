"""How a run was asked for: what is kept of it, what is told of it, and what is refused before anything is written."""

from dataclasses import replace
from typing import Any

import pytest

from stagecoach.contract.launch import JobState, NameTaken, RunHandle
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.site import Site
from stagecoach.stages.control import Control, RunHeld, request_of
from stagecoach.stages.pipeline import prepare_pipeline, record_pipeline, request_from
from stagecoach.testing.fake_launcher import FakeLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.cli import carry_out
from stagecoach_flows.pipeline import Pipeline

from .conftest import HeldWhileItRuns, World

WITHOUT_SUITES = tuple(setting for setting in TOY_SETTINGS if "suites" not in setting)


def test_of_two_callers_who_ask_for_different_things_the_refused_one_does_not_say_how_to_go_on(world: World) -> None:
    world.run(stages=("pretrain",))
    kept = request_from(request_of(world.runs, "toy"), root=world.root, run_id="new")
    one, other = (
        prepare_pipeline(replace(kept, settings=(*kept.settings, f"pretrain.optimizer.peak_lr={rate}")), Site()) for rate in (1e-3, 2e-3)
    )
    record_pipeline(one)
    with pytest.raises(ConfigError, match="has frozen another plan"):
        record_pipeline(other)
    assert request_of(world.runs, "new").settings == one.request.settings


def test_what_was_given_before_and_is_not_now_is_told(world: World) -> None:
    world.run(stages=("pretrain",), ranks_per_node=2)
    kept = request_from(request_of(world.runs, "toy"), root=world.root, run_id="toy")
    assert prepare_pipeline(kept, Site()).warnings == []
    (warning,) = prepare_pipeline(replace(kept, ranks_per_node=None), Site()).warnings
    assert "was last asked for with --ranks-per-node 2, which is not given now" in warning.says


def test_a_stages_code_is_not_set_by_hand(world: World) -> None:
    with pytest.raises(ConfigError, match="--set pretrain.code=abc: .* is given with --code DIR"):
        world.run(settings=(*TOY_SETTINGS, "pretrain.code=abc"))


def test_ctrl_c_before_a_cancelled_run_goes_on_leaves_it_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunHeld):
        world.run(HeldWhileItRuns(world, "cancel"))

    def interrupted(*_: Any) -> None:
        assert Control(world.runs, "toy").held() is None
        raise KeyboardInterrupt

    monkeypatch.setattr("stagecoach_flows.in_place.run_in_place", interrupted)
    monkeypatch.setattr("stagecoach_flows.surroundings.launcher_of", lambda *_: FakeLauncher(world.cluster))
    before = Control(world.runs, "toy").held()
    with pytest.raises(StagecoachError, match="it stays cancelled"):
        carry_out(request_from(request_of(world.runs, "toy"), root=world.root, run_id="toy"), after_fatal=False, as_json=False)
    assert Control(world.runs, "toy").held() == before is not None


def test_stages_data_and_parents_are_checked_before_anything_is_written(world: World) -> None:
    for changes, says in (
        ({"stages": ("sfd",)}, "did you mean"),
        ({"stages": ("sft",)}, "has not finished"),
        ({"data": f"{world.corpus}-not"}, "--data"),
        ({"from_checkpoint": f"{world.root}/x"}, "no stage that was asked for starts from"),
        ({"code": "ab" * 32}, "code bundle"),
        ({"settings": ("pretrain.steps=0",)}, "steps"),
        ({"settings": (*WITHOUT_SUITES, 'sft.evaluation.suites=["generl"]')}, "sft.evaluation.suites: 'generl'.*did you mean `general`"),
    ):
        with pytest.raises(ConfigError, match=says):
            world.run(**changes)
        assert world.runs.ids() == []


def test_a_dataset_that_was_replaced_since_the_run_began_is_refused(world: World) -> None:
    from dataclasses import replace

    from stagecoach.contract.records import encode

    world.run(stages=("pretrain",))
    run = world.runs.run("toy")
    assert run is not None
    forged = {name: {**pin, "fingerprint": "0" * 64} for name, pin in run.data.items()}
    world.runs.store.publish("runs/toy/run.json", encode(replace(run, data=forged)))
    with pytest.raises(ConfigError, match="it was replaced since"):
        world.run(stages=("pretrain",))


class AskedMeanwhile(TrainingLauncher):
    """While the first job runs, somebody else asks for the same run otherwise, and watches too."""

    def __init__(self, world: World, **changes: Any) -> None:
        super().__init__(world.cluster, Counter())
        self.world, self.changes = world, changes
        self.other: Pipeline | None = None

    def describe(self, handle: RunHandle) -> JobState:
        if self.other is None:
            self.other = Pipeline(self.world.request(**self.changes), self.world.surroundings(FakeLauncher(self.cluster)))
            self.told = self.goes_on("pretrain")
        return super().describe(handle)

    def goes_on(self, stage: str) -> str:
        """What the other one is refused with."""
        assert self.other is not None
        with pytest.raises((ConfigError, NameTaken)) as told:
            self.other.stage(stage)
        return str(told.value)


def test_who_is_refused_over_the_layout_of_a_job_that_runs_does_not_say_how_to_go_on(world: World) -> None:
    launcher = AskedMeanwhile(world, ranks_per_node=2)
    world.run(launcher, ranks_per_node=1)
    assert "ranks_per_node: there 1, asked 2" in launcher.told
    assert request_of(world.runs, "toy").ranks_per_node == 1


def test_who_is_refused_over_a_later_stage_does_not_say_how_to_go_on(world: World) -> None:
    class Attached(AskedMeanwhile):
        """The first stage is the same for both."""

        def goes_on(self, stage: str) -> str:
            return "" if stage == "pretrain" else super().goes_on(stage)

    launcher = Attached(world, settings=(*TOY_SETTINGS, "sft.seed=5"))
    world.run(launcher)
    assert request_of(world.runs, "toy").settings[-1] == "sft.seed=5"
    assert "sft.seed: there 0, asked 5" in launcher.goes_on("sft")
    assert request_of(world.runs, "toy").settings == TOY_SETTINGS
    assert [result["was_done"] for result in world.resume("toy")] == [True, True]


def test_a_newer_word_than_the_refused_one_stays(world: World) -> None:
    world.run(stages=("pretrain",))
    control = Control(world.runs, "toy")
    first, second = control.request(), replace(request_of(world.runs, "toy"), stages=("pretrain", "sft"))
    control.ask(second)
    control.take_back(replace(second, stages=("sft",)), first)
    assert control.request() == second
    control.take_back(second, None)
    assert control.request() == second
    control.take_back(second, first)
    assert control.request() == first


def test_a_stage_that_was_asked_for_and_is_not_now_is_told_until_it_is_begun(world: World) -> None:
    world.run(stages=("pretrain",))
    Control(world.runs, "toy").ask(replace(request_of(world.runs, "toy"), stages=()))
    (warning,) = prepare_pipeline(world.request(stages=("pretrain",)), Site()).warnings
    assert warning.says == "was last asked for with stage sft too, which is not asked for now"
    world.run()
    assert prepare_pipeline(world.request(stages=("pretrain",)), Site()).warnings == []


def test_a_run_that_is_paused_and_cancelled_stays_both_when_it_is_asked_for(world: World) -> None:
    world.run(stages=("pretrain",))
    control = Control(world.runs, "toy")
    control.hold("pause", "lunch")
    control.hold("cancel", "bad idea")
    kept, beat = control.request(), control.last_beat()
    with pytest.raises(RunHeld, match=r"paused \(lunch\); `stagecoach unpause toy`"):
        carry_out(world.request(stages=()), after_fatal=False, as_json=False)
    assert control.held() is not None
    assert (control.request(), control.last_beat()) == (kept, beat)
    control.lift("pause")
    assert control.held() is not None


def test_a_cancelled_run_stays_cancelled_when_it_cannot_be_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(stages=("pretrain",))
    control = Control(world.runs, "toy")
    control.hold("cancel", "bad idea")
    before = control.held()

    def refused(*_: Any) -> None:
        assert control.held() is None
        raise ConfigError("somebody froze another plan in between")

    monkeypatch.setattr("stagecoach_flows.in_place.run_in_place", refused)
    monkeypatch.setattr("stagecoach_flows.surroundings.launcher_of", lambda *_: FakeLauncher(world.cluster))
    with pytest.raises(ConfigError, match="in between"):
        carry_out(world.request(), after_fatal=False, as_json=False)
    assert control.held() == before


def test_whoever_finds_a_run_held_does_not_say_that_it_is_watched(world: World) -> None:
    world.run(stages=("pretrain",))
    control = Control(world.runs, "toy")
    beat = control.last_beat()
    control.hold("pause")
    with pytest.raises(RunHeld):
        world.run()
    assert control.last_beat() == beat


def test_a_name_that_is_no_run_id_is_refused_as_such(world: World) -> None:
    world.run(stages=("pretrain",))
    for name in ("../x", "", "a b"):
        with pytest.raises(ConfigError, match="run id"):
            carry_out(world.request(run_id=name), after_fatal=False, as_json=False)
