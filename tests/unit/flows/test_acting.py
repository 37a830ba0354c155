"""Cancel, pause, unpause, compare, and finding runs that nobody watches: over the fake launcher and a real folder."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from loguru import logger
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from stagecoach.cli.act import fork_command, pause_command, unpause_command
from stagecoach.cli.compare import compare_command
from stagecoach.cli.read import explain_command, status_command
from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError, RunFailed
from stagecoach.launch.submit import submit_job
from stagecoach.site import Site
from stagecoach.stages.act import stop_run, unpause
from stagecoach.stages.control import Control, Heartbeat, RunHeld, who
from stagecoach.stages.pipeline import prepare_pipeline
from stagecoach.stages.recover import find_abandoned
from stagecoach.storage.errors import StoreUnavailable
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import Cancelled, StoppedWatching, heals, plain_stage, run_pipeline, stage_task
from stagecoach_flows.surroundings import NoView, Outcome, Surroundings, surrounded

from .conftest import HeldWhileItRuns, World


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


def test_blip3s_stages_that_are_not_built_are_refused_when_planned(world: World) -> None:
    from stagecoach.stages.pipeline import PipelineRequest

    with pytest.raises(ConfigError, match="not built yet"):
        prepare_pipeline(PipelineRequest(recipe="blip3_tiny", root=world.root, data=world.corpus, stages=("dpo",)), Site())
    assert world.runs.ids() == []


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
