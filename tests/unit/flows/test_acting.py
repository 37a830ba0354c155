"""Cancel, pause, unpause, fork, compare, and finding runs that nobody watches: over the fake launcher and a real folder."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
from click.testing import CliRunner
from loguru import logger
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.cli.act import fork_command, pause_command, unpause_command
from stagecoach.cli.compare import compare_command
from stagecoach.cli.read import explain_command, status_command
from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, RunHandle
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import Parent, Steps
from stagecoach.errors import CheckpointError, ConfigError, RunFailed, StagecoachError
from stagecoach.launch.submit import submit_job
from stagecoach.site import Site
from stagecoach.stages.act import stop_run, unpause
from stagecoach.stages.compare import compare_runs
from stagecoach.stages.control import Control, Heartbeat, RunHeld, request_of, who
from stagecoach.stages.fork import ForkRequest, fork
from stagecoach.stages.pipeline import pin_stage, prepare_pipeline, record_pipeline, request_from
from stagecoach.stages.recover import find_abandoned
from stagecoach.storage.errors import StoreUnavailable
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.cli import carry_out
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import Cancelled, StoppedWatching, heals, plain_stage, run_pipeline, stage_task
from stagecoach_flows.surroundings import NoView, Outcome, Surroundings, surrounded

WITHOUT_SUITES = tuple(setting for setting in TOY_SETTINGS if "suites" not in setting)


@dataclass
class World:
    """One run's root and cluster."""

    root: str
    corpus: str
    cluster: FakeCluster

    @property
    def runs(self) -> Runs:
        return Runs.open(self.root)

    def run(self, launcher: Any = None, **changes: Any) -> list[dict[str, Any]]:
        values: dict[str, Any] = {"recipe": "mm1_tiny", "root": self.root, "run_id": "toy", "data": self.corpus, "settings": TOY_SETTINGS}
        return self.go(Mm1Parameters(**{**values, **changes}), launcher)

    def go(self, parameters: Mm1Parameters, launcher: Any = None) -> list[dict[str, Any]]:
        chosen = launcher or TrainingLauncher(self.cluster, Counter())
        around = Surroundings(
            launcher=lambda _name, _ranks: chosen, evaluation=lambda *_: None, poll_s=0.0, retry_delays_s=(0.0, 0.0), outcome=Outcome()
        )
        with surrounded(around):
            return run_pipeline(parameters, run_one=plain_stage)

    def resume(self, run_id: str) -> list[dict[str, Any]]:
        kept = request_from(request_of(self.runs, run_id), root=self.root, run_id=run_id)
        return self.go(
            Mm1Parameters(
                recipe=kept.recipe, root=kept.root, run_id=run_id, data=kept.data, settings=tuple(kept.settings), stages=tuple(kept.stages)
            )
        )


@pytest.fixture
def world(root: str, corpus: str) -> Iterator[World]:
    return World(root, corpus, FakeCluster())  # type: ignore[return-value]


class HeldWhileItRuns(FakeLauncher):
    """Somebody stops the run at the first look at its job."""

    def __init__(self, world: World, kind: Any, launcher: type[FakeLauncher] = FakeLauncher) -> None:
        super().__init__(world.cluster)
        self.world, self.kind, self.launcher, self.is_done = world, kind, launcher, False

    def describe(self, handle: RunHandle) -> JobState:
        if not self.is_done:
            self.is_done = True
            stop_run(self.world.runs, "toy", self.kind, launcher_of=lambda _: self.launcher(self.cluster), reason="lunch")
        return super().describe(handle)


class CancelsOnly(FakeLauncher):
    """A launcher that has no pause."""

    pause = unpause = None  # type: ignore[assignment]


@pytest.mark.parametrize(("kind", "held", "jobs"), [(CancelsOnly, Phase.CANCELLED, 3), (FakeLauncher, Phase.PAUSED, 2)])
def test_a_paused_run_frees_its_place_and_is_not_submitted_until_it_is_unpaused(
    world: World, kind: type[FakeLauncher], held: Phase, jobs: int
) -> None:
    with pytest.raises(RunHeld, match=r"paused \(lunch\); `stagecoach unpause toy`"):
        world.run(HeldWhileItRuns(world, "pause", kind))
    assert [job.state.phase for job in world.cluster.jobs.values()] == [held]
    with pytest.raises(RunHeld, match="paused"):
        world.run()
    assert len(world.cluster.jobs) == 1
    for command in (status_command, explain_command):
        told = CliRunner().invoke(command, ["toy", "--root", world.root, "--json"], catch_exceptions=False)
        answer = json.loads(told.stdout)
        answer = answer.get("jobs", [answer])[0]
        assert (answer["cause"], answer["next"], answer["held"]["reason"]) == ("paused", "unpause", "lunch")
        assert answer["held"]["by"] == who()
    assert unpause(world.runs, "toy", launcher_of=lambda _: kind(world.cluster)).was_paused
    assert not unpause(world.runs, "toy", launcher_of=lambda _: kind(world.cluster)).was_paused
    assert [one["stage"] for one in world.resume("toy")] == ["pretrain", "sft"]
    assert len(world.cluster.jobs) == jobs


def test_a_caller_that_dies_while_it_unpauses_leaves_a_run_that_is_still_paused(world: World) -> None:
    class Dies(FakeLauncher):
        def unpause(self, handle: RunHandle) -> None:
            super().unpause(handle)
            raise Crashed("after unpause")

    with pytest.raises(RunHeld):
        world.run(HeldWhileItRuns(world, "pause"))
    with pytest.raises(Crashed):
        unpause(world.runs, "toy", launcher_of=lambda _: Dies(world.cluster))
    assert Control(world.runs, "toy").held() is not None
    assert unpause(world.runs, "toy", launcher_of=lambda _: FakeLauncher(world.cluster)).was_paused
    assert [one["stage"] for one in world.resume("toy")] == ["pretrain", "sft"]
    assert len(world.cluster.jobs) == 2


def test_a_paused_run_can_be_cancelled(world: World) -> None:
    with pytest.raises(RunHeld):
        world.run(HeldWhileItRuns(world, "pause"))
    done = stop_run(world.runs, "toy", "cancel", launcher_of=lambda _: FakeLauncher(world.cluster))
    assert (done.stages, done.kept) == (("pretrain",), ())
    assert [job.state.phase for job in world.cluster.jobs.values()] == [Phase.CANCELLED]


def test_a_cancelled_run_goes_on_when_somebody_asks_for_it_again(world: World) -> None:
    with pytest.raises(RunHeld, match="cancelled") as told:
        world.run(HeldWhileItRuns(world, "cancel"))
    assert told.value.exit_code == 143
    assert find_abandoned(world.runs, watch_s=0) == []
    with pytest.raises(RunHeld, match="`stagecoach resume toy` goes on"):
        world.run()
    assert Control(world.runs, "toy").lift("cancel")  # as `stagecoach run` and `resume` do, when a person asks
    assert [one["was_done"] for one in world.resume("toy")] == [False, False]


def test_a_finished_or_unknown_run_cannot_be_stopped(world: World) -> None:
    world.run()
    with pytest.raises(ConfigError, match="is finished"):
        stop_run(world.runs, "toy", "pause", launcher_of=lambda _: FakeLauncher(world.cluster))
    for unknown in ("other", "", "..", "a/b"):
        with pytest.raises(ConfigError, match=f"no run '{unknown}'"):
            stop_run(world.runs, unknown, "pause", launcher_of=lambda _: FakeLauncher(world.cluster))


def test_evaluations_of_a_finished_run_can_be_cancelled(world: World) -> None:
    world.run()
    run = world.runs.run("toy")
    assert run is not None
    stage = world.runs.stage(run, "pretrain")
    spec = world.cluster.jobs[stage.submissions()[-1].name].spec
    evaluation = JobFolder(stage.store.child("evaluation/captions"))
    submit_job(FakeLauncher(world.cluster), evaluation, replace(spec, name="eval", job_uri=evaluation.uri))
    done = stop_run(world.runs, "toy", "cancel", launcher_of=lambda _: FakeLauncher(world.cluster))
    assert (done.stages, done.is_new) == (("pretrain evaluation captions",), True)
    assert Control(world.runs, "toy").held() is None


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


def test_a_run_is_abandoned_when_its_controllers_beat_stands_still(world: World) -> None:
    with pytest.raises(RunFailed):
        world.run(FailingLauncher(world.cluster, 1))
    control = Control(world.runs, "toy")
    (found,) = find_abandoned(world.runs, watch_s=0)
    assert (found.run_id, found.stage, found.request.recipe) == ("toy", "pretrain", "mm1_tiny")
    beating = Heartbeat(control, clock=iter(range(0, 10_000, 100)).__next__)
    assert find_abandoned(world.runs, watch_s=1, sleep=lambda _: beating("pretrain")) == []
    world.run()
    assert find_abandoned(world.runs, watch_s=0) == []


def test_a_run_that_failed_for_good_is_not_started_again_by_itself(world: World) -> None:
    with pytest.raises(RunFailed, match="failed with 41"):
        world.run(FailingLauncher(world.cluster, 41))
    assert find_abandoned(world.runs, watch_s=0) == []


class FailingLauncher(FakeLauncher):
    """Its job ends with `code` at the first look."""

    def __init__(self, cluster: FakeCluster, code: int) -> None:
        super().__init__(cluster)
        self.code = code

    def describe(self, handle: RunHandle) -> JobState:
        if not super().describe(handle).phase.is_terminal:
            self.cluster.finish(handle.name, self.code)
        return super().describe(handle)


def test_what_time_heals_is_tried_again_and_what_it_does_not_is_not(world: World) -> None:
    class Away(TrainingLauncher):
        tries = 0

        def submit(self, spec: Any) -> RunHandle:
            Away.tries += 1
            if Away.tries < 3:
                raise StoreUnavailable("away")
            return super().submit(spec)

    world.run(Away(world.cluster, Counter()))
    assert Away.tries == 4
    with pytest.raises(ConfigError, match="another plan"):
        world.run(settings=(*TOY_SETTINGS[:1], "pretrain.schedule.warmup_steps=2", *TOY_SETTINGS[2:]))


def test_ctrl_c_stops_the_watching_and_twice_cancels(world: World) -> None:
    class Person(NoView):
        def __init__(self, twice: bool) -> None:
            self.twice = twice

        def poll(self, folder: Any) -> None:
            raise KeyboardInterrupt

        def wants_cancel(self) -> bool:
            return self.twice

    values: dict[str, Any] = {"recipe": "mm1_tiny", "root": world.root, "run_id": "toy", "data": world.corpus, "settings": TOY_SETTINGS}
    for twice, kind, phase in ((False, StoppedWatching, Phase.RUNNING), (True, Cancelled, Phase.CANCELLED)):
        around = Surroundings(
            launcher=lambda *_: FakeLauncher(world.cluster), evaluation=lambda *_: None, poll_s=0.0, outcome=Outcome(),
            view=lambda *_, twice=twice: nullcontext(Person(twice)),  # type: ignore[misc]
        )  # fmt: skip
        with surrounded(around), pytest.raises(kind, match="stagecoach resume toy"):
            run_pipeline(Mm1Parameters(**values), run_one=plain_stage)
        assert [job.state.phase for job in world.cluster.jobs.values()] == [phase]


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


def test_blip3s_stages_that_are_not_built_are_refused_when_planned(world: World) -> None:
    from stagecoach.stages.pipeline import PipelineRequest

    with pytest.raises(ConfigError, match="not built yet"):
        prepare_pipeline(PipelineRequest(recipe="blip3_tiny", root=world.root, data=world.corpus, stages=("dpo",)), Site())
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


def test_the_commands_say_what_they_did(world: World) -> None:
    world.run(stages=("pretrain",))
    paused = CliRunner().invoke(pause_command, ["toy", "--root", world.root], catch_exceptions=False)
    assert "toy: paused; nothing ran" in paused.output
    lifted = CliRunner().invoke(unpause_command, ["toy", "--root", world.root], catch_exceptions=False)
    assert "no longer paused" in lifted.output
    asked = ["toy", "--stage", "pretrain", "--run-id", "c", "--root", world.root, "--set", "pretrain.seed=7"]
    forked = CliRunner().invoke(fork_command, asked, catch_exceptions=False)
    assert "c: pretrain" in forked.output
    compared = CliRunner().invoke(compare_command, ["toy", "toy", "--root", world.root], catch_exceptions=False)
    assert "the same weights" in compared.output


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


@pytest.mark.parametrize(("kind", "phase"), [("cancel", Phase.CANCELLED), ("pause", Phase.PAUSED)])
def test_a_hold_that_comes_while_a_job_is_submitted_stops_the_job(world: World, kind: Any, phase: Phase) -> None:
    class HeldAsItIsSubmitted(FakeLauncher):
        def submit(self, spec: Any) -> RunHandle:
            stop_run(world.runs, "toy", kind, launcher_of=lambda _: FakeLauncher(world.cluster), reason="lunch")
            return super().submit(spec)

    with pytest.raises(RunHeld, match="lunch"):
        world.run(HeldAsItIsSubmitted(world.cluster))
    assert [job.state.phase for job in world.cluster.jobs.values()] == [phase]


def test_ctrl_c_twice_cancels_the_evaluation_that_runs(world: World) -> None:
    class Person(NoView):
        def wants_cancel(self) -> bool:
            return True

    class StillAnswers(TrainingLauncher):
        def describe(self, handle: RunHandle) -> JobState:
            return FakeLauncher.describe(self, handle) if handle.name.startswith("eval") else super().describe(handle)

    def evaluation(task: Any, launcher: Any, _data: Any) -> Any:
        def ask(folder: JobFolder, _plan: Any, _result: Any) -> dict[str, str]:
            spec = world.cluster.jobs[folder.submissions()[-1].name].spec
            asked = JobFolder(folder.store.child("evaluation/captions"))
            submit_job(launcher, asked, replace(spec, name="eval", job_uri=asked.uri))
            raise KeyboardInterrupt

        return ask

    around = Surroundings(
        launcher=lambda *_: StillAnswers(world.cluster, Counter()), evaluation=evaluation, poll_s=0.0, outcome=Outcome(),
        view=lambda *_: nullcontext(Person()),
    )  # fmt: skip
    values: dict[str, Any] = {"recipe": "mm1_tiny", "root": world.root, "run_id": "toy", "data": world.corpus, "settings": TOY_SETTINGS}
    with surrounded(around), pytest.raises(Cancelled):
        run_pipeline(Mm1Parameters(**values), run_one=plain_stage)
    assert [job.state.phase for job in world.cluster.jobs.values()] == [Phase.SUCCEEDED, Phase.CANCELLED]


def test_a_run_is_finished_when_all_that_was_asked_for_is(world: World) -> None:
    world.run(stages=("pretrain",))
    told = CliRunner().invoke(explain_command, ["toy", "--root", world.root, "--json"], catch_exceptions=False)
    assert (json.loads(told.stdout)["cause"], json.loads(told.stdout)["stage"]) == ("finished", "pretrain")
    listed = CliRunner().invoke(status_command, ["toy", "--root", world.root, "--json"], catch_exceptions=False)
    assert [(job["cause"], job["next"]) for job in json.loads(listed.stdout)["jobs"]] == [
        ("finished", "nothing"), ("never_submitted", "nothing"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="is finished; there is nothing to cancel"):
        stop_run(world.runs, "toy", "cancel", launcher_of=lambda _: FakeLauncher(world.cluster))
    assert Control(world.runs, "toy").held() is None


def test_a_job_that_ended_unseen_is_not_said_to_have_been_cancelled(world: World) -> None:
    class Dies(TrainingLauncher):
        def describe(self, handle: RunHandle) -> JobState:
            super().describe(handle)
            raise Crashed("before the end was noted")

    with pytest.raises(Crashed):
        world.run(Dies(world.cluster, Counter()))
    assert stop_run(world.runs, "toy", "cancel", launcher_of=lambda _: FakeLauncher(world.cluster)).stages == ()


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


def test_a_stage_that_is_tried_again_says_why() -> None:
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), format="{message}")
    try:
        assert heals(
            stage_task, TaskRun(task_key="stage", dynamic_key="0", name="pretrain"), Failed(data=StoreUnavailable("the disk is full"))
        )
    finally:
        logger.remove(sink)
    assert said == ["stage pretrain is tried again after a pause: the disk is full\n"]
