"""A saving process or its rank, killed anywhere: nothing torn is ever offered. F24 to F26, F30, F34, F55."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stagecoach.checkpoints import State, checkpoint_ref, latest, list_checkpoints, verify
from stagecoach.contract.ledger import JobFolder
from stagecoach.testing import shared_memory
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.commit import SKIPPED, digests_name, say_that_it_is_skipped
from stagecoach_workloads.checkpoints.errors import SaveFailed, SaveSkipped
from stagecoach_workloads.testing.checkpointing import assert_equal, blank, start_attempt, whole_state

Build = Callable[..., Checkpoints]
KILLS = int(os.environ.get("STAGECOACH_SAVER_KILLS", "8"))  # more of them: set it


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, whole_state(step))
    checkpoints.before_update()
    assert checkpoints.wait(120)


def go_on_training(checkpoints: Checkpoints) -> None:
    """The loop of a trainer, until a look says that the save came to nothing."""
    for _ in range(6000):
        checkpoints.before_update()
        time.sleep(0.01)


def assert_restores(build: Build, job: JobFolder, step: int) -> None:
    reader, into = build(job, attempt=max(job.attempt_numbers(), default=1)), blank(whole_state(0))
    values = reader.restore(into)
    assert values is not None
    assert values.step == step
    assert_equal(into, whole_state(step))


@pytest.mark.parametrize("phase", ["upload", "manifest", "commit", "gc"])
def test_killed_at_each_phase_the_last_commit_is_what_is_offered(build: Build, job: JobFolder, phase: str) -> None:
    checkpoints = build(job, faults=[{"at": phase, "step": 2, "action": "sigkill"}])
    save(checkpoints, 1)
    checkpoints.save(2, whole_state(2))
    with pytest.raises(SaveFailed, match=r"saving process \(pid \d+\) was killed by SIGKILL"):
        go_on_training(checkpoints)
    newest = latest(job)
    assert newest is not None
    assert newest.step == (2 if phase == "gc" else 1)
    assert_restores(build, job, newest.step)


@pytest.mark.parametrize(
    ("rank", "phase", "action"), [(0, "manifest", "sigkill"), (1, "upload", "sigkill"), (0, "commit", "raise")]
)  # fmt: skip
def test_nobody_waits_for_a_rank_whose_saving_process_came_to_nothing(
    build: Build, job: JobFolder, rank: int, phase: str, action: str
) -> None:
    """Its rank says so in the step's folder: the others would wait until the watchdog ends them, while it waits for them to hear of it."""
    faults = [{"at": phase, "step": 1, "rank": rank, "action": action}]
    ranks = [build(job, rank=each, world_size=2, faults=faults) for each in (0, 1)]
    for each in ranks:
        each.save(1, whole_state(1))
    with pytest.raises(SaveSkipped, match=f"step 1 was not saved: rank {rank}: "):
        ranks[1 - rank].wait(600)
    with pytest.raises(SaveFailed):
        ranks[rank].wait(600)
    ranks[1 - rank].before_update()  # a step does not need it
    assert latest(job) is None


def test_a_rank_whose_part_is_complete_spoils_no_commit(build: Build, job: JobFolder) -> None:
    """Killed when its digests stand already: the others' save is committed."""
    ref = checkpoint_ref(job, 1, 1)
    job.store.publish(f"{ref.key}/{digests_name(1)}", b"{}")
    job.store.publish(f"{ref.key}/COMMITTED", b"")
    for rank in (0, 1):
        say_that_it_is_skipped(job, ref, rank, "killed")
    assert not [info for info in job.store.list(ref.key) if SKIPPED in info.key]


def test_killed_at_any_moment_nothing_torn_is_offered(build: Build, job: JobFolder) -> None:
    """Each attempt saves the next step and is killed at a moment of its own; what is offered then proves right and holds its own step."""
    chance, offered, seconds = random.Random(7), 0, 0.2
    for attempt in range(1, KILLS + 1):
        start_attempt(job, attempt, offered)
        checkpoints = build(job, attempt=attempt)
        if attempt == 1:
            save(checkpoints, 1)
            offered, seconds = 1, checkpoints.seconds_of_last_save() or seconds
        step = offered + 1  # the same step again by each attempt, until one commits it
        checkpoints.save(step, whole_state(step))
        while not any(report.text == "upload" and report.step == step for report in list(checkpoints._reports)):
            time.sleep(0.001)  # a process takes its time to start; moments are counted from its first object
        time.sleep(chance.uniform(0, 0.5 * seconds))
        link = checkpoints._link
        assert link is not None
        os.kill(link.pid, signal.SIGKILL)
        newest = latest(job)
        assert newest is not None
        manifest = verify(job, newest, level="full").manifest
        assert newest.step in (offered, step)
        assert manifest.attempt <= attempt
        offered = newest.step
        checkpoints.close()
    start_attempt(job, KILLS + 1, offered)
    final = build(job, attempt=KILLS + 1)
    save(final, offered + 1)
    assert_restores(build, job, offered + 1)


def test_the_same_step_by_a_later_attempt_lies_in_a_folder_of_its_own(build: Build, job: JobFolder) -> None:
    """A killed save of step 2 is not mixed with the next attempt's."""
    start_attempt(job, 1, 0)
    first = build(job, attempt=1, faults=[{"at": "manifest", "step": 2, "action": "sigkill"}])
    save(first, 1)
    first.save(2, whole_state(2))
    with pytest.raises(SaveFailed):
        first.wait(60)
    start_attempt(job, 2, 1)
    save(build(job, attempt=2), 2)
    found = {(each.ref.step, each.ref.attempt): each.state for each in list_checkpoints(job)}
    assert found[2, 2] == State.COMMITTED
    assert found.get((2, 1), State.TORN) == State.TORN
    assert_restores(build, job, 2)


def test_a_folder_is_never_written_twice(build: Build, job: JobFolder) -> None:
    save(build(job), 1)
    again = build(job)
    again.save(1, whole_state(3))
    with pytest.raises(SaveFailed, match="a folder is never used again"):
        again.wait(60)
    assert_restores(build, job, 1)


def test_newer_torn_ones_do_not_hide_or_cost_a_good_one(build: Build, job: JobFolder) -> None:
    """F34: retention counts what is committed and right, not folders."""
    checkpoints = build(job, keep=2)
    save(checkpoints, 1)
    for step in (5, 6, 7):
        job.store.publish(f"checkpoints/step-{step:08d}/attempt-9/model-00000.safetensors", b"torn")
    for step in (2, 3):
        save(checkpoints, step)
    assert [found.ref.step for found in list_checkpoints(job) if found.state == State.COMMITTED][:2] == [3, 2]


RANK = """
import os, sys, time
from pathlib import Path
from stagecoach_workloads.testing.checkpointing import build_checkpoints, rank_context, whole_state
checkpoints = build_checkpoints(rank_context(sys.argv[1], Path(sys.argv[2])))
for step in range(1, 1000):
    checkpoints.save(step, whole_state(step))
    checkpoints.before_update()
    if step == 1:
        checkpoints.wait(120)
        print(checkpoints._link.pid, flush=True)
"""


def test_a_killed_rank_takes_its_saving_process_with_it_and_leaves_no_memory(build: Build, job: JobFolder, tmp_path: Path) -> None:
    named = shared_memory.names()
    rank = subprocess.Popen([sys.executable, "-c", RANK, job.uri, str(tmp_path / "local")], stdout=subprocess.PIPE, text=True)
    try:
        assert rank.stdout is not None
        saver = psutil.Process(int(rank.stdout.readline()))
        saver.send_signal(signal.SIGTERM)  # what a platform sends to all: the rank decides, the process goes on
        time.sleep(0.2)
        assert saver.is_running()
    finally:
        rank.kill()
        rank.communicate()
    deadline = time.monotonic() + 120
    while saver.is_running() and saver.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not saver.is_running() or saver.status() == psutil.STATUS_ZOMBIE
    assert shared_memory.left_behind(named) == set()
    newest = latest(job)
    assert newest is not None
    verify(job, newest, level="full")


def test_a_stop_that_comes_while_the_saving_process_still_imports_does_not_end_it(build: Build, job: JobFolder) -> None:
    """F19. Without it the other ranks' processes would wait in the bucket for its part until the grace is over."""
    checkpoints = build(job)
    assert checkpoints._link is not None
    os.kill(checkpoints._link.pid, signal.SIGTERM)
    save(checkpoints, 1)
    assert checkpoints.committed_step == 1
