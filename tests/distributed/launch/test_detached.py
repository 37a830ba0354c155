"""Jobs outlive whoever started them, and end when they are told to. Stand-in supervisors."""

import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from stagecoach.constants import Phase
from stagecoach.contract.launch import RunHandle
from stagecoach.errors import ClusterUnavailable, StagecoachError
from stagecoach.launch import local_state
from stagecoach.launch.local_state import NodeFiles
from stagecoach.launch.processes import processes_of
from stagecoach.testing.local_world import LocalWorld, wait_for

SUBMIT = """
import sys, time
from pathlib import Path
from stagecoach.testing.local_world import LocalWorld
world = LocalWorld(Path(sys.argv[1]))
print(world.launcher().submit(world.spec()).uid, flush=True)
time.sleep(600)
"""

HOLD = """
import sys, time
from pathlib import Path
from stagecoach.launch.local_state import JobDirectory
with JobDirectory.named(Path(sys.argv[1]), sys.argv[2]).locked(create=True):
    print("locked", flush=True)
    time.sleep(600)
"""


def submitted(world: LocalWorld) -> RunHandle:
    wait_for(lambda: bool(world.launcher().list()), "the submit")
    (handle,) = world.launcher().list()
    wait_for(lambda: world.is_up(handle), "the job to be up")
    return handle


def test_a_launcher_killed_with_sigkill_leaves_the_job_running_and_a_later_one_attaches(world: LocalWorld) -> None:
    with subprocess.Popen([sys.executable, "-c", SUBMIT, str(world.root)], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        uid = launcher.stdout.readline().decode().strip()
        launcher.kill()
    handle = world.launcher().submit(world.spec())
    assert handle.uid == uid
    assert world.starts(handle) == [1, 1]
    assert not world.launcher().describe(handle).phase.is_terminal
    world.finish(handle, 0)
    assert world.launcher().describe(handle).phase == Phase.SUCCEEDED


def test_a_terminal_that_hangs_up_takes_no_job_with_it(world: LocalWorld) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SUBMIT, str(world.root)])
    handle = submitted(world)
    os.close(terminal)  # SIGHUP to everything that has this terminal
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    time.sleep(0.2)
    assert world.num_processes(handle) == 2
    for process in processes_of(world.state / "jobs" / handle.name):
        assert process.terminal() is None
        assert os.getsid(process.pid) not in (process.pid, os.getsid(0))  # no leader: it can never get a terminal again


def test_an_ended_node_leaves_no_zombie_of_ours(world: LocalWorld) -> None:
    handle = world.launcher().submit(world.spec())
    world.finish(handle, 0)
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(("stubborn", "grace_s"), [("0", 60), ("1", 1)])
def test_cancel_ends_the_whole_tree_within_the_grace_period(world: LocalWorld, stubborn: str, grace_s: int) -> None:
    """A supervisor that does not hear SIGTERM, with a child each, is killed after the grace period; a good one ends at once."""
    spec = world.spec(grace_s=grace_s, environment={"STAND_IN_STUBBORN": stubborn, "STAND_IN_CHILD": "1"})
    handle = world.launcher().submit(spec)
    wait_for(lambda: world.num_processes(handle) == 4, "two supervisors with a child each")
    began = time.monotonic()
    world.launcher().cancel(handle)
    took = time.monotonic() - began
    left = [process for process in psutil.process_iter() if str(world.state) in " ".join(environment(process))]
    print(f"cancel: stubborn={stubborn}, grace {grace_s} s, took {took:.2f} s, processes left {len(left)}")
    assert left == []
    assert took < (grace_s + 20 if stubborn == "1" else grace_s / 2)
    assert world.launcher().describe(handle).phase == Phase.CANCELLED


def environment(process: psutil.Process) -> list[str]:
    try:
        return list(process.environ().values())
    except psutil.Error:
        return []


def test_cancel_of_a_stopped_process_works_too(world: LocalWorld) -> None:
    handle = world.launcher().submit(world.spec(grace_s=1))
    wait_for(lambda: world.is_up(handle), "the job to be up")
    for process in processes_of(world.state / "jobs" / handle.name):
        process.suspend()
    world.launcher().cancel(handle)
    assert world.num_processes(handle) == 0


def test_a_cancel_before_the_second_node_started_keeps_it_from_starting(world: LocalWorld) -> None:
    handle = world.launcher().submit(world.spec())
    wait_for(lambda: world.is_up(handle), "the job to be up")
    node = world.nodes(handle)[1]
    for process in processes_of(world.state / "jobs" / handle.name):
        process.kill()
    wait_for(lambda: not node.is_alive(), "node 1 to be gone")
    for suffix in ("started", "json"):
        node.path(suffix).unlink()  # as a launcher that died before it started node 1 leaves it
    world.launcher().cancel(handle)
    assert world.launcher().submit(world.spec()) == handle
    assert world.num_processes(handle) == 0
    assert world.launcher().describe(handle).phase == Phase.CANCELLED


def test_a_node_is_known_to_live_before_it_has_written_anything(tmp_path: Path) -> None:
    node = NodeFiles(tmp_path / "node-0", 0)
    assert not node.is_alive()
    life = node.take_life()
    assert node.is_alive()
    assert node.view().condition == "starting"
    os.close(life)
    assert not node.is_alive()
    assert node.view().condition == "absent"


def test_a_launcher_stopped_in_the_middle_of_its_submit_is_named(world: LocalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_state, "LOCK_WAIT_S", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(world.state), world.spec().name], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ClusterUnavailable, match=f"locked by another launcher .pid {holder.pid}. for 0.2 s"):
            world.launcher().submit(world.spec())
        holder.kill()
    handle = world.launcher().submit(world.spec())
    assert world.starts(handle) == [1, 1]


def test_deleting_while_others_submit_never_mixes_two_jobs(world: LocalWorld) -> None:
    """One thread deletes while another submits, a little later each round: what is left is the old job, a whole new one, or none."""
    rounds, left = 12, {"none": 0, "a new job": 0}
    for number in range(rounds):
        old = world.launcher().submit(world.spec(nodes=1, grace_s=1))
        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(world.launcher().delete, old)
            if number == rounds - 1:
                deleting.result()
            time.sleep(number * 0.01)
            try:
                again = world.launcher().submit(world.spec(nodes=1, grace_s=1))
            except StagecoachError:  # it attached to the old job, which is deleted now
                again = None
            deleting.result()
        found = world.launcher().attach(old.name)
        assert found is None or found == again
        assert found != old
        left["a new job" if found else "none"] += 1
        if found:
            assert world.starts(found) == [1]
            world.launcher().delete(found)
    print(f"delete against submit, {rounds} rounds: {left}")
    assert left["a new job"] > 0
