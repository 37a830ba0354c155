"""F31: an old attempt, frozen and taken for dead, wakes and writes on beside its successor."""

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stagecoach.checkpoints import State, list_checkpoints
from stagecoach.constants import ExitCode
from stagecoach.contract.plan import StagePlan
from stagecoach.testing.chaos import ENTRYPOINT, Story, differences, read_trace
from stagecoach.testing.local_world import wait_for
from stagecoach.testing.supervised import SupervisedJob

pytestmark = pytest.mark.timeout(900)
FROZEN_AT = 12  # its saving process stands before MANIFEST.json of this step
SUCCESSOR_AT = 40  # the successor is so far when the old one wakes


def wait_for_event(trace: Path, name: str, step: int, attempt: int) -> None:
    path, until = trace / f"attempt-{attempt}-rank-0.jsonl", time.monotonic() + 200
    while time.monotonic() < until:
        if path.exists():
            events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            if any((event["name"], event["step"]) == (name, step) for event in events):
                return
        time.sleep(0.05)
    raise AssertionError(f"attempt {attempt} never told {name} of step {step}")


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ended since they were listed
            process.send_signal(number)


def test_a_frozen_attempt_that_wakes_beside_its_successor_changes_nothing(tmp_path: Path, plan: StagePlan, whole: Story) -> None:
    old = SupervisedJob(tmp_path / "old", {}, entrypoint=ENTRYPOINT)
    new = SupervisedJob(tmp_path / "new", {}, entrypoint=ENTRYPOINT, uri=old.uri)
    old.job.write_plan(plan)
    trace, mark = tmp_path / "trace", tmp_path / "mark"
    trace.mkdir()
    environment = {"STAGECOACH_TEST_TRACE": str(trace), "STAGECOACH_HANG_S": "3600"}
    freeze = {"at": "manifest", "step": FROZEN_AT, "action": "sigstop", "mark": str(mark)}
    try:
        old.start(environment={**environment, "STAGECOACH_TEST_FAULTS": json.dumps([freeze])})
        wait_for_event(trace, "step", FROZEN_AT + 1, 1)  # beyond the save that never ends
        wait_for(mark.exists, "the save that stands still before its manifest")
        frozen = old.processes()
        signal_all(frozen, signal.SIGSTOP)
        new.submit()
        new.start(environment=environment)
        wait_for_event(trace, "step", SUCCESSOR_AT, 2)
        signal_all(frozen, signal.SIGCONT)
        assert old.wait(timeout_s=120) == ExitCode.RETRY, old.tail()
        assert new.wait(timeout_s=200) == 0, new.tail()
        assert new.survivors() == []
    finally:
        new.close()
        old.close()
    check_what_is_read(new, whole, trace)
    assert new.job.attempt_numbers() == [1, 2]  # the old supervisor did not take the new one for dead in turn
    assert any("attempt 1 writes nothing more" in line.text for line in old.lines), old.tail()


def check_what_is_read(job: SupervisedJob, whole: Story, trace: Path) -> None:
    start, result = job.job.attempt_start(2), job.job.result()
    assert start is not None
    assert result is not None
    assert start.resumed_from_step == FROZEN_AT - 3
    read = [found.ref for found in list_checkpoints(job.job) if found.state == State.COMMITTED]
    assert all(ref.attempt == 2 for ref in read if ref.step > start.resumed_from_step)
    story = Story(digest=result.weights_digest, tokens=result.tokens, images=result.images)
    read_trace(trace, story)
    assert differences(story, whole) == []
