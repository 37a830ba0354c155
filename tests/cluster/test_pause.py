"""`stagecoach pause` and `unpause` of a run whose stage is a JobSet: Kueue takes the place away and gives it back, the object stays."""

from dataclasses import replace

from stagecoach.constants import Phase
from stagecoach.contract.ledger import Runs
from stagecoach.launch.submit import submit_job
from stagecoach.stages.act import stop_run, unpause
from stagecoach.testing.builders import run_record
from stagecoach.testing.cluster_world import ClusterWorld


def test_a_paused_run_goes_on_as_the_same_jobset(world: ClusterWorld) -> None:
    runs = Runs.open(world.root)
    run = run_record(run_id="toy", stages=("pretrain",))
    assert runs.create(run)
    job = runs.stage(run, "pretrain")
    spec = replace(world.spec(), job_uri=job.uri)
    handle = submit_job(world.launcher(), job, spec)
    world.wait_running(handle)

    for is_new in (True, False):
        done = stop_run(runs, "toy", "pause", launcher_of=lambda _: world.launcher(), reason="lunch")
        assert (done.kept, done.stages, done.is_new) == (("pretrain",), (), is_new)
    assert world.wait_phase(handle, Phase.PAUSED).reason == "lunch"
    assert job.submission_state(1).state == "submitted"  # type: ignore[union-attr]

    let_go = unpause(runs, "toy", launcher_of=lambda _: world.launcher())
    assert (let_go.stages, let_go.was_paused) == (("pretrain",), True)
    assert submit_job(world.launcher(), job, spec) == handle  # as whoever resumes the run does
    world.wait_running(handle)
    assert [one.submission for one in job.submissions()] == [1]

    ended = stop_run(runs, "toy", "cancel", launcher_of=lambda _: world.launcher())
    assert ended.stages == ("pretrain",)
    assert world.wait_phase(handle, Phase.CANCELLED).exit_code == 143
