"""Submitting through the intent log, on a real API server and a real bucket: many callers at once, replies that are lost (F59, F60)."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

from stagecoach.constants import Phase
from stagecoach.contract.launch import RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ClusterUnavailable
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.launch.submit import submit_job
from stagecoach.testing.builders import attempt_end, attempt_start
from stagecoach.testing.cluster_world import ClusterWorld

NUM_CALLERS = 32


class LosesReplies:
    """A connection over which creates are carried out and their first answer is lost; with `dead`, nothing gets through afterwards."""

    def __init__(self, kube: Kube, *, dead: bool = False) -> None:
        self.lost, self.dead, self._real = 0, dead, kube._request
        kube._request = self

    def __call__(self, method: str, url: str, **rest: Any) -> Any:
        if self.dead and self.lost:
            raise urllib3.exceptions.ProtocolError("nobody answers")
        answer = self._real(method, url, **rest)
        if method == "POST" and not self.lost:
            assert answer.status == 201, answer.data
            self.lost += 1
            raise urllib3.exceptions.ProtocolError("the answer was lost")
        return answer


def is_one_job(world: ClusterWorld, job: JobFolder, handle: RunHandle) -> None:
    """One JobSet, one submission, and every node was started once."""
    (jobset,) = world.kube.list(world.jobset_path(""), what="list jobsets")["items"]
    assert (jobset["metadata"]["name"], jobset["metadata"]["uid"]) == (handle.name, handle.uid)
    assert [one.submission for one in job.submissions()] == [1]
    state = job.submission_state(1)
    assert state is not None
    assert (state.state, state.handle) == ("submitted", handle.uid)
    assert world.starts(handle) == [1, 1]


def test_32_callers_that_submit_one_stage_at_once_make_one_jobset(world: ClusterWorld) -> None:
    spec = world.spec()

    def submit(_: int) -> RunHandle:
        return submit_job(world.launcher(), JobFolder.open(spec.job_uri), spec)

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        handles = set(pool.map(submit, range(NUM_CALLERS)))
    (handle,) = handles
    is_one_job(world, JobFolder.open(spec.job_uri), handle)


def test_a_create_whose_answer_is_lost_is_adopted_by_the_caller(world: ClusterWorld) -> None:
    kube = connect()
    line, spec = LosesReplies(kube), world.spec()
    job = JobFolder.open(spec.job_uri)
    handle = submit_job(JobsetLauncher(kube, world.site()), job, spec)
    assert line.lost == 1
    is_one_job(world, job, handle)


def test_a_caller_that_is_cut_off_after_its_create_is_followed_by_one_that_adopts_the_job(world: ClusterWorld) -> None:
    kube = connect(deadline_s=1.0)
    line, spec = LosesReplies(kube, dead=True), world.spec()
    job = JobFolder.open(spec.job_uri)
    with pytest.raises(ClusterUnavailable, match="create jobset"):
        submit_job(JobsetLauncher(kube, world.site()), job, spec)
    assert line.lost == 1
    assert job.submission_state(1) is None  # claimed, and nobody knows more
    handle = submit_job(world.launcher(), job, spec)
    is_one_job(world, job, handle)


def test_a_node_on_which_two_attempts_failed_first_is_left_out_of_the_next_jobset(world: ClusterWorld) -> None:
    launcher, spec = world.launcher(), world.spec()
    job = JobFolder.open(spec.job_uri)
    first = submit_job(launcher, job, spec)
    for attempt in (1, 2):
        job.claim_attempt(attempt_start(attempt=attempt, nodes=2, ranks_per_node=1))
        job.end_attempt(attempt_end(attempt=attempt, first_failed_node="fake-0"))
    world.end_pods(first, 75)
    world.wait_phase(first, Phase.FAILED)
    second = submit_job(launcher, job, spec)
    assert second.name == first.name.replace("-s1", "-s2")
    pod = world.jobset(second)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (stored,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert stored["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["fake-0"]}]
    assert stored["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["fake-0"]}]
    world.wait_running(second)
    assert "fake-0" not in {pod["spec"]["nodeName"] for pod in world.pods(second)}
