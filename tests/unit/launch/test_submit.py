"""The intent log, on the fake launcher: what stage runner and preflight stand on."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from loguru import logger

import stagecoach.launch.submit as submit_module
from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec, NameTaken, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import canonical_json, to_plain
from stagecoach.errors import ClusterUnavailable, ConfigError, ContractError, RunFailed
from stagecoach.launch.registry import LAUNCHERS, get_launcher
from stagecoach.launch.submit import settle, submit_job, wait_job, with_number
from stagecoach.testing.builders import TIME, attempt_end, attempt_start, launch_spec, submission
from stagecoach.testing.fake_launcher import Crashed, FakeCluster, FakeLauncher


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder.open((tmp_path / "job").as_uri())


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def spec_for(job: JobFolder, **changes: Any) -> LaunchSpec:
    return launch_spec(job_uri=job.uri, **changes)


def test_a_submission_is_claimed_before_the_launcher_is_asked(job: JobFolder, cluster: FakeCluster) -> None:
    with pytest.raises(Crashed):
        submit_job(FakeLauncher(cluster, crash_at="before_create"), job, spec_for(job))
    assert [(claim.submission, claim.launcher) for claim in job.submissions()] == [(1, "fake")]
    assert job.submission_state(1) is None
    assert cluster.jobs == {}


def test_the_claim_holds_the_whole_spec_under_its_digest(job: JobFolder, cluster: FakeCluster) -> None:
    handle = submit_job(FakeLauncher(cluster), job, spec_for(job, name="toy-pretrain-0123abcd"))
    (claim,) = job.submissions()
    wanted = spec_for(job, name="toy-pretrain-0123abcd-s1", submission=1)
    assert handle.name == claim.name == wanted.name
    assert claim.spec_digest == wanted.digest
    assert json.loads(canonical_json(dict(claim.spec))) == json.loads(canonical_json(to_plain(wanted)))


@pytest.mark.parametrize("before", ["x", "x-s1", "x-s12"])
def test_a_name_carries_its_submissions_number_once(before: str) -> None:
    numbered = with_number(launch_spec(name=before), 3)
    assert (numbered.name, numbered.submission) == ("x-s3", 3)


def test_submitting_twice_attaches(job: JobFolder, cluster: FakeCluster) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    assert submit_job(FakeLauncher(cluster), job, spec_for(job)) == first
    assert len(job.submissions()) == len(cluster.jobs) == 1


def test_whoever_attaches_is_told_who_holds_the_job(job: JobFolder, cluster: FakeCluster) -> None:
    """B49."""
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="INFO")
    try:
        handle = submit_job(FakeLauncher(cluster), job, spec_for(job))
        assert said == []  # the first one holds it
        (claim,) = job.submissions()
        submitted = f"'{handle.name}' was submitted to launcher 'fake' at {claim.created_at} and has not ended; attached to it"
        submit_job(FakeLauncher(cluster), job, spec_for(job))
        job.claim_attempt(attempt_start(attempt=3, submission=1, leader_host="gpu-17"))
        submit_job(FakeLauncher(cluster), job, spec_for(job))
        cluster.finish(handle.name, 143)
        submit_job(FakeLauncher(cluster), job, spec_for(job))  # the next one is its own
        submit_job(FakeLauncher(cluster), job, spec_for(job))  # whose first attempt has not begun
    finally:
        logger.remove(sink)
    assert [words.removeprefix(submitted) for words in said[:2]] == [
        ", no attempt of it has begun yet",
        f": attempt 3 began at {TIME}, led from gpu-17",
    ]
    assert len(said) == 3
    assert said[2].startswith(f"'{job.submissions()[-1].name}' was submitted")
    assert said[2].endswith("no attempt of it has begun yet")  # attempt 3 was the other submission's


def test_32_callers_at_once_get_one_job(job: JobFolder, cluster: FakeCluster) -> None:
    with ThreadPoolExecutor(32) as pool:
        handles = list(pool.map(lambda _: submit_job(FakeLauncher(cluster), job, spec_for(job)), range(32)))
    assert len(set(map(repr, handles))) == 1
    assert len(job.submissions()) == len(cluster.jobs) == 1


@pytest.mark.parametrize("code", [75, 143])
def test_a_retried_end_is_followed_by_the_next_submission(job: JobFolder, cluster: FakeCluster, code: int) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    cluster.finish(first.name, code)
    second = submit_job(FakeLauncher(cluster), job, spec_for(job, ranks_per_node=1))  # another layout may follow
    assert second.name.endswith("-s2")
    ended = job.submission_state(1)
    assert ended is not None
    assert (ended.state, ended.exit_code) == ("ended", code)


def test_a_done_job_is_attached_to(job: JobFolder, cluster: FakeCluster) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    cluster.finish(first.name, 0)
    assert submit_job(FakeLauncher(cluster), job, spec_for(job)) == first
    assert len(job.submissions()) == 1


def test_a_fatal_end_is_not_retried_unless_somebody_says_the_cause_is_gone(job: JobFolder, cluster: FakeCluster) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    cluster.finish(first.name, 42)
    with pytest.raises(RunFailed, match="ended with 42.*never retried") as failed:
        submit_job(FakeLauncher(cluster), job, spec_for(job))
    assert failed.value.job_exit_code == 42
    assert submit_job(FakeLauncher(cluster), job, spec_for(job), after_fatal=True).name.endswith("-s2")


def test_an_open_submission_with_another_spec_is_refused_with_what_differs(job: JobFolder, cluster: FakeCluster) -> None:
    submit_job(FakeLauncher(cluster), job, spec_for(job))
    with pytest.raises(NameTaken, match="nodes: there 1, asked 2"):
        submit_job(FakeLauncher(cluster), job, spec_for(job, nodes=2))
    assert len(job.submissions()) == 1


@pytest.mark.parametrize(
    "changes",
    [{"image": "training:0.2.0"}, {"grace_s": 60}, {"queue": "other"}, {"priority": "high"}, {"environment": {"A": "b"}}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_open_submission_goes_on_when_the_site_was_upgraded_under_it(
    job: JobFolder, cluster: FakeCluster, changes: dict[str, Any]
) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    assert submit_job(FakeLauncher(cluster), job, spec_for(job, **changes)) == first
    (there,) = cluster.jobs.values()
    assert there.spec == spec_for(job)
    cluster.finish(first.name, 75)
    submit_job(FakeLauncher(cluster), job, spec_for(job, **changes))
    assert replace(cluster.jobs[first.name.replace("-s1", "-s2")].spec, name=first.name, submission=1) == spec_for(job, **changes)


def test_a_claim_of_a_version_without_a_field_is_attached_to(job: JobFolder, cluster: FakeCluster) -> None:
    """What an older controller claimed; its digest is not the one that this version would make."""
    spec = spec_for(job)
    old = {name: value for name, value in to_plain(spec).items() if name not in ("topology", "excluded_nodes")}
    job.claim_submission(replace(submission(spec, launcher="fake"), spec=old, spec_digest="of an older version"))
    handle = submit_job(FakeLauncher(cluster), job, spec)
    assert (handle.name, len(cluster.jobs), len(job.submissions())) == (spec.name, 1, 1)


def test_a_claim_of_a_version_with_another_field_is_refused_by_its_name(job: JobFolder, cluster: FakeCluster) -> None:
    spec = spec_for(job)
    job.claim_submission(
        replace(submission(spec, launcher="fake"), spec={**to_plain(spec), "fabric": "nvlink"}, spec_digest="of a newer version")
    )
    with pytest.raises(ContractError, match="unknown key `fabric`"):
        submit_job(FakeLauncher(cluster), job, spec)
    assert cluster.jobs == {}


class OtherLauncher(FakeLauncher):
    name = "other"


def test_an_open_submission_of_another_launcher_is_refused(job: JobFolder, cluster: FakeCluster) -> None:
    submit_job(FakeLauncher(cluster), job, spec_for(job))
    with pytest.raises(NameTaken, match="launcher 'fake'.*--launcher fake"):
        submit_job(OtherLauncher(cluster), job, spec_for(job))


def test_a_job_the_launcher_lost_is_submitted_again_under_the_same_number(job: JobFolder, cluster: FakeCluster) -> None:
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    FakeLauncher(cluster).delete(first)
    again = submit_job(FakeLauncher(cluster), job, spec_for(job))
    assert again.name == first.name
    assert len(job.submissions()) == 1


def test_waiting_tells_every_change_and_writes_the_end(job: JobFolder, cluster: FakeCluster) -> None:
    launcher = FakeLauncher(cluster)
    handle = submit_job(launcher, job, spec_for(job))
    steps = iter([lambda: cluster.preempt(handle.name), lambda: cluster.resume(handle.name), lambda: cluster.finish(handle.name, 0)])
    phases = []

    def on_state(state: Any) -> None:
        phases.append(state.phase)
        next(steps, lambda: None)()

    state = wait_job(launcher, job, handle, 1, poll_s=0.001, on_state=on_state)
    assert phases == [Phase.RUNNING, Phase.PREEMPTED, Phase.RUNNING, Phase.SUCCEEDED]
    assert state.exit_code == 0
    ended = job.submission_state(1)
    assert ended is not None
    assert (ended.state, ended.phase) == ("ended", "SUCCEEDED")
    assert settle(launcher, job, job.submissions()[0]) == ended


def test_waiting_for_a_job_that_somebody_deleted_ends(job: JobFolder, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "UNKNOWN_FOR_S", 0.01)
    handle = submit_job(FakeLauncher(cluster), job, spec_for(job))
    FakeLauncher(cluster).delete(handle)
    with pytest.raises(RunFailed, match="is gone from launcher 'fake'"):
        wait_job(FakeLauncher(cluster), job, handle, 1, poll_s=0.001)


def crash_at_line(line: int) -> Iterator[None]:
    """Raises Crashed before the line-th line of submit.py."""
    left = line

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != submit_module.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Crashed(f"line {line}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("ended", [False, True])
def test_f67_a_caller_that_dies_at_any_line_leaves_what_the_next_completes(tmp_path: Path, ended: bool) -> None:
    """`ended`: the submission before it ended with 75, which nobody had written down."""
    line, wrong = 0, []
    while True:
        line += 1
        cluster, job = FakeCluster(), JobFolder.open((tmp_path / str(line)).as_uri())
        if ended:
            cluster.finish(submit_job(FakeLauncher(cluster), job, spec_for(job)).name, 75)
        tracer = crash_at_line(line)
        next(tracer)
        try:
            submit_job(FakeLauncher(cluster), job, spec_for(job))
            survived = True
        except Crashed:
            survived = False
        finally:
            tracer.close()  # type: ignore[attr-defined]
        handle = submit_job(FakeLauncher(cluster), job, spec_for(job))
        expected = 2 if ended else 1
        state = job.submission_state(expected)
        if not (len(job.submissions()) == len(cluster.jobs) == expected and state is not None and state.handle == handle.uid):
            wrong.append(line)
        if survived:
            break
    print(f"F67 (fake, ended={ended}): {line - 1 - len(wrong)} / {line - 1} lines right")
    assert wrong == []
    assert line > 20


def test_a_launcher_that_does_not_exist_yet_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="--launcher ray: not built yet; here there is: local, jobset, kubernetes"):
        get_launcher("ray")


def test_an_unknown_launcher_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no such launcher.*did you mean `jobset`"):
        get_launcher("jobsets")
    assert [get_launcher(name).name for name in LAUNCHERS] == ["local", "jobset", "kubernetes"]


def test_what_differs_is_told_without_values_of_variables(job: JobFolder) -> None:
    from stagecoach.launch.differences import spec_differences

    spec = spec_for(job, environment={"A": "secret-1", "B": "2"})
    other = replace(spec, environment={"A": "secret-2"}, nodes=2)
    assert spec_differences(spec, other) == ["environment.A: differs", "environment.B: differs", "nodes: there 1, asked 2"]


class Placing(FakeLauncher):
    chooses_machines = True


def test_a_machine_on_which_attempts_failed_first_twice_is_left_out_of_the_next_submission(job: JobFolder) -> None:
    cluster = FakeCluster()
    launcher, spec = Placing(cluster), spec_for(job)
    first = submit_job(launcher, job, spec)
    for attempt, machine in enumerate(("gpu-1", "gpu-7", "gpu-7"), start=1):
        job.claim_attempt(attempt_start(attempt=attempt))
        job.end_attempt(attempt_end(attempt=attempt, first_failed_node=machine))
    assert submit_job(launcher, job, spec) == first  # open: the claim decides, whatever the ledger says since
    cluster.finish(first.name, 75)
    second = submit_job(launcher, job, spec)
    assert cluster.jobs[second.name].spec.excluded_nodes == ("gpu-7",)
    assert submit_job(launcher, job, spec) == second
    cluster.finish(second.name, 143)
    job.claim_attempt(attempt_start(attempt=4, submission=2))
    job.end_attempt(attempt_end(attempt=4, kind="stopped", exit_code=143))
    third = submit_job(launcher, job, spec)
    assert cluster.jobs[third.name].spec.excluded_nodes == ()


def test_a_launcher_that_chooses_no_machines_excludes_none(job: JobFolder) -> None:
    cluster = FakeCluster()
    first = submit_job(FakeLauncher(cluster), job, spec_for(job))
    for attempt in (1, 2):
        job.claim_attempt(attempt_start(attempt=attempt))
        job.end_attempt(attempt_end(attempt=attempt, first_failed_node="here"))
    cluster.finish(first.name, 75)
    assert cluster.jobs[submit_job(FakeLauncher(cluster), job, spec_for(job)).name].spec.excluded_nodes == ()


class OftenAway(FakeLauncher):
    """Its cluster answers every third question."""

    asked, tended = 0, 0

    def describe(self, handle: RunHandle) -> JobState:
        self.asked += 1
        if self.asked % 3:
            raise ClusterUnavailable("connection refused")
        if self.asked > 8:
            self.cluster.finish(handle.name, 0)
        return super().describe(handle)

    def tend(self, handle: RunHandle) -> None:
        self.tended += 1


def test_f61_a_cluster_that_is_away_is_waited_for_and_the_job_is_tended_to(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "UNKNOWN_FOR_S", -1.0)  # to whom a job is unknown, it is gone at once
    launcher, told = OftenAway(), []
    handle = submit_job(launcher, job, spec_for(job))
    state = wait_job(launcher, job, handle, 1, poll_s=0, on_state=lambda state: told.append(state.reason))
    assert state.phase == Phase.SUCCEEDED
    assert "the cluster does not answer: connection refused" in told
    assert launcher.tended == 2
