"""The local launcher with the supervisor and torch ranks that pods run: two nodes of two ranks on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stagecoach.constants import Phase
from stagecoach.contract.job import JobRecord
from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.launch.local import LocalLauncher
from stagecoach.launch.processes import processes_of
from stagecoach.launch.submit import settle, submit_job, wait_job
from stagecoach.testing.builders import TIME, launch_spec
from stagecoach.testing.local_world import wait_for

WAIT_S = 60.0


class Real:
    """One job of the scripted workload."""

    def __init__(self, root: Path, *, nodes: int, **settings: Any) -> None:
        self.launcher = LocalLauncher(root / "state")
        self.job = JobFolder.open((root / "runs/toy/stages/00-pretrain").as_uri())
        self.spec: LaunchSpec = launch_spec(job_uri=self.job.uri, nodes=nodes, ranks_per_node=2, grace_s=10)
        self.job.write_job(JobRecord(name="toy", kind="test", identity=self.spec.identity, settings=settings, created_at=TIME))

    def submit(self) -> RunHandle:
        return submit_job(LocalLauncher(self.launcher.state), self.job, self.spec)

    def describe(self, handle: RunHandle) -> JobState:
        return LocalLauncher(self.launcher.state).describe(handle)

    def wait_for_step(self, handle: RunHandle, step: int) -> None:
        def is_there() -> bool:
            state = self.describe(handle)
            assert not state.phase.is_terminal, state
            progress = self.job.progress(state.attempt) if state.attempt else None
            return progress is not None and progress.committed_step >= step

        wait_for(is_there, f"step {step} to be committed", WAIT_S)

    def processes(self, handle: RunHandle) -> list[psutil.Process]:
        return processes_of(self.launcher.state / "jobs" / handle.name)

    def close(self) -> None:
        for handle in self.launcher.list():
            self.launcher.delete(handle)


@pytest.fixture
def real(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Real]:
    there = Real(tmp_path, **request.param)
    yield there
    there.close()


@pytest.mark.parametrize("real", [{"nodes": 2, "steps": 10}], indirect=True)
def test_two_supervisors_on_one_machine_run_one_job_of_four_ranks(real: Real) -> None:
    handle = real.submit()
    assert real.submit() == handle
    phases: list[Phase] = []
    state = wait_job(real.launcher, real.job, handle, 1, poll_s=0.05, on_state=lambda seen: phases.append(seen.phase))
    assert (state.phase, state.exit_code, state.attempt, state.restarts) == (Phase.SUCCEEDED, 0, 1, 0)
    told = [phase for phase in dict.fromkeys(phases) if phase != Phase.STOPPING]  # seen when one node ends a little before the other
    assert told == [Phase.STARTING, Phase.RUNNING, Phase.SUCCEEDED]
    assert [node.node for node in real.job.nodes(1)] == [0, 1]
    lines = list(real.launcher.logs(handle, follow=True))
    for rank in range(4):
        steps = [line.text for line in lines if line.rank == rank and line.text.startswith("step ")]
        assert [text.split()[1] for text in steps] == [str(step) for step in range(1, 11)], f"rank {rank}"
    assert any(line.rank == -1 for line in lines)
    assert [line for line in lines if line.rank == 3] == list(real.launcher.logs(handle, rank=3, attempt=1))


@pytest.mark.parametrize("real", [{"nodes": 2, "steps": 10_000, "step_s": 0.05, "commit_every": 5}], indirect=True)
def test_cancel_of_two_nodes_saves_and_leaves_no_process(real: Real) -> None:
    handle = real.submit()
    real.wait_for_step(handle, 5)
    num_processes = len(real.processes(handle))
    real.launcher.cancel(handle)
    print(f"cancel: {num_processes} processes before, {len(real.processes(handle))} after")
    assert num_processes >= 6
    assert real.processes(handle) == []
    state = real.describe(handle)
    assert (state.phase, state.exit_code) == (Phase.CANCELLED, 143)
    end = real.job.attempt_end(1)
    assert end is not None
    assert (end.exit_code, end.steps_lost) == (143, 0)


@pytest.mark.parametrize("real", [{"nodes": 1, "steps": 10_000, "step_s": 0.05, "commit_every": 5}], indirect=True)
def test_a_supervisor_killed_without_a_word_is_found_explained_and_followed(real: Real) -> None:
    handle = real.submit()
    real.wait_for_step(handle, 5)
    (supervisor,) = [process for process in real.processes(handle) if process.cmdline()[-1] == "stagecoach.supervisor"]
    supervisor.kill()
    state = wait_job(real.launcher, real.job, handle, 1, poll_s=0.05)
    assert (state.phase, state.exit_code) == (Phase.FAILED, 75)
    assert "died without a word" in state.reason
    gone_s = wait_for(lambda: not real.processes(handle), "its ranks to be gone")
    end = real.job.attempt_end(1)
    assert end is not None
    assert (end.kind, end.exit_code, end.written_by) == ("found_dead", 75, "controller")
    assert end.committed_step >= 5
    assert end.steps_lost == end.step - end.committed_step
    ended = settle(real.launcher, real.job, real.job.submissions()[0])
    assert ended is not None
    assert ended.exit_code == 75
    second = real.submit()
    assert second.name.endswith("-s2")
    real.wait_for_step(second, end.committed_step + 5)
    start = real.job.attempt_start(2)
    assert start is not None
    print(f"found dead: ranks gone after {gone_s:.2f} s, {end.steps_lost} steps lost, attempt 2 goes on from {start.resumed_from_step}")
    assert start.resumed_from_step >= end.committed_step
    assert start.submission == 2
