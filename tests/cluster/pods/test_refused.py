"""Jobs that cannot run as they are: each says what is wrong, and only what time can heal is tried again."""

from dataclasses import replace

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.submit import wait_job
from stagecoach.testing.pod_world import S3_KEYS, PodWorld

pytestmark = pytest.mark.timeout(400)


def wait_says(pods: PodWorld, handle: RunHandle, *words: str) -> str:
    """The state's reason once it has all these words in it."""
    said: list[str] = []

    def says() -> bool:
        said.append(pods.state(handle).reason)
        return all(word in said[-1] for word in words)

    pods.until(says, f"{handle.name} to say {words}")
    return said[-1]


def test_an_image_that_is_not_there_is_named(pods: PodWorld) -> None:
    handle = pods.submit_scripted("no-image", spec=pods.spec("no-image", image="localhost/nowhere:1"))
    print("image missing:", wait_says(pods, handle, "cannot start", "localhost/nowhere:1"))
    said = pods.say("explain", "no-image")
    print("explain:", said["sentence"])
    assert said["cause"] == "admitted"
    assert "localhost/nowhere:1" in said["sentence"]
    pods.launcher().cancel(handle)
    pods.wait_phase(handle, Phase.CANCELLED)


def test_a_secret_that_is_not_there_is_named(pods: PodWorld) -> None:
    spec = pods.spec("no-secret")
    wrong = tuple(replace(secret, secret="bukket") for secret in spec.secrets)
    handle = pods.submit_scripted("no-secret", spec=replace(spec, secrets=wrong))
    print("secret missing:", wait_says(pods, handle, "cannot start", "bukket"))
    pods.launcher().cancel(handle)
    pods.wait_phase(handle, Phase.CANCELLED)


def test_a_wrong_key_of_the_bucket_ends_the_job_and_is_not_tried_again(pods: PodWorld) -> None:
    pods.keep_secret(dict.fromkeys(S3_KEYS, "wrong"))
    handle = pods.submit_scripted("wrong-key")
    state = pods.wait_phase(handle, Phase.FAILED)
    print("wrong key:", state)
    assert (state.exit_code, state.restarts) == (40, 0)


def test_a_bad_setting_ends_the_job_at_once_and_is_not_tried_again(pods: PodWorld) -> None:
    handle = pods.submit_scripted("bad-config", {"kind": "bad_config", "rank": 1, "step": 1})
    state = pods.wait_phase(handle, Phase.FAILED)
    print("bad config:", state)
    assert (state.exit_code, state.restarts) == (40, 0)
    said = pods.say("explain", "bad-config")
    print("explain:", said["sentence"])
    assert (said["cause"], said["next"], said["attempts"]) == ("bad_config", "change", 1)
    assert "pretrain.batch.size=0" in said["sentence"]


def test_a_crash_is_tried_again_and_counted(pods: PodWorld) -> None:
    handle = pods.submit_scripted("crash", {"kind": "exception", "rank": 1, "step": 5, "attempt": 1})
    state = wait_job(pods.launcher(), JobFolder.open(handle.job_uri), handle, 1)
    assert (state.phase, state.exit_code) == (Phase.SUCCEEDED, 0)
    status = pods.jobset(handle)["status"]
    assert (status["restarts"], status["restartsCountTowardsMax"]) == (1, 1)
    folder = JobFolder.open(handle.job_uri)
    first, second = folder.attempt_end(1), folder.attempt_start(2)
    assert first is not None
    assert second is not None
    assert (first.kind, first.exit_code, first.first_failed_rank) == ("crashed", 75, 1)
    assert (second.why, second.resumed_from_step) == ("retry", first.committed_step)


def test_memory_that_does_not_suffice_is_told_as_that(pods: PodWorld) -> None:
    handle = pods.submit_scripted("memory", {"kind": "eat_memory", "rank": 1, "step": 5, "attempt": 1, "value": 2048})
    state = wait_job(pods.launcher(), JobFolder.open(handle.job_uri), handle, 1)
    first = JobFolder.open(handle.job_uri).attempt_end(1)
    assert first is not None
    print("memory:", first.kind, first.message)
    assert (first.kind, first.exit_code, first.first_failed_rank) == ("out_of_memory", 75, 1)
    assert (state.phase, state.exit_code) == (Phase.SUCCEEDED, 0)
