"""Launchers die at any line, and many submit at once: one job, never none for ever, never two (reliability.md F55, F59, F60, F67)."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import LaunchSpec, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.local import LocalLauncher
from stagecoach.launch.submit import settle, submit_job
from stagecoach.testing.local_world import LocalWorld


def run(experiment: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "stagecoach.testing.crashes", experiment, str(folder)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_f67_a_launcher_killed_at_any_step_of_submit_leaves_what_a_later_submit_completes(tmp_path: Path) -> None:
    """`python -m stagecoach.testing.crashes lines FOLDER` kills at every single line."""
    began = time.monotonic()
    found = run("states", tmp_path)
    left = {key: count for key, count in found.items() if key.startswith("left")}
    right = found["crashes"] - len(found["wrong"])
    print(
        f"F67: {right} / {found['crashes']} crashes right, at the first and last line of each of {found['states']} states a submit of",
        end=" ",
    )
    print(f"{found['lines']} lines goes through ({left}); {time.monotonic() - began:.0f} s")
    assert found["wrong"] == []
    assert found["states"] > 10
    assert min(left.values()) > 0


def test_f60_32_processes_that_submit_at_once_start_one_job(tmp_path: Path) -> None:
    found = run("race", tmp_path)
    print(f"F60: {found['callers']} callers, {found['jobs']} job, nodes started {found['starts']} times, handles {len(found['uids'])}")
    assert (found["callers"], found["jobs"], len(found["uids"])) == (32, 1, 1)
    assert (found["starts"], found["processes"]) == ([1, 1], 2)
    assert found["submissions"] == ["1.json", "1.submitted.json"]


class ReplyLost(LocalLauncher):
    """Does what it is told, and the answer never arrives."""

    def submit(self, spec: LaunchSpec) -> RunHandle:
        super().submit(spec)
        raise ConnectionResetError("the reply was lost")


def test_f59_a_job_whose_submitter_never_got_the_reply_is_adopted(world: LocalWorld) -> None:
    spec = world.spec()
    job = JobFolder.open(spec.job_uri)
    with pytest.raises(ConnectionResetError):
        submit_job(ReplyLost(world.state, module=world.launcher().module), job, spec)
    assert job.submission_state(1) is None
    handle = submit_job(world.launcher(), job, spec)
    jobs = world.launcher().list()
    print(f"F59: {len(jobs)} job, nodes started {world.starts(handle)} times, submissions {len(job.submissions())}")
    assert jobs == [handle]
    assert world.starts(handle) == [1, 1]
    assert len(job.submissions()) == 1


def test_f55_what_a_killed_job_leaves_does_not_disturb_the_next_start(world: LocalWorld) -> None:
    """kill -9 to all of it, ten times: the next submission starts clean although locks and files stay behind."""
    tries, clean = 10, 0
    spec = world.spec()
    job = JobFolder.open(spec.job_uri)
    for number in range(1, tries + 1):
        handle = submit_job(world.launcher(), job, spec)
        assert world.starts(handle) == [1, 1]
        clean += handle.name.endswith(f"-s{number}")
        world.lose(handle)
        lost = job.submissions()[-1]
        ended = settle(world.launcher(), job, lost)
        assert ended is not None
        assert (ended.phase, ended.exit_code) == (Phase.FAILED, 75)
    print(f"F55: {clean} / {tries} starts after kill -9 were clean")
    assert clean == tries
