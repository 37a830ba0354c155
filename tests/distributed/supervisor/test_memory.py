"""F08: the kernel kills for memory in a control group with a limit. The end says so, it is tried again, and no more than three times."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.testing.supervised import expected_state

from .conftest import StartJob

LIMIT_MB, MORE_MB = 2500, 5000  # room for a supervisor, two agents and a rank with torch each; what the fault asks for


def make_group() -> Path | str:
    """A control group with LIMIT_MB of memory, or the sentence that says why there is none."""
    places = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))  # v1, v2
    for root, limit in places:
        group = Path(root, f"stagecoach-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(LIMIT_MB << 20))
            return group
        except OSError:
            group.rmdir()
    return "needs a memory control group: none can be made below /sys/fs/cgroup by this user"


@pytest.fixture
def through() -> Iterator[list[str]]:
    """What puts a program into a group of its own, with everything it starts."""
    group = make_group()
    if isinstance(group, str):
        pytest.skip(group)
    yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:  # its last process is not gone yet
            time.sleep(0.05)
    raise AssertionError(f"{group} still has processes: {(group / 'cgroup.procs').read_text()}")


def test_a_rank_killed_for_memory_is_tried_three_times_and_then_no_more(make_job: StartJob, through: list[str]) -> None:
    job = make_job({"steps": 20, "faults": [{"kind": "eat_memory", "step": 2, "attempt": None, "value": MORE_MB}]}, ranks=1)
    job.start(through=through)
    assert job.wait() == 44
    *tried, last = job.ends()
    says = "rank 0 was killed by the kernel: its control group ran out of memory"
    assert [(end.kind, end.exit_code, end.first_failed_rank, end.message) for end in tried] == [("out_of_memory", 75, 0, says)] * 3
    assert (last.kind, last.message) == ("no_progress", f"attempts 1, 2, 3 committed nothing past step 0; the last one: {says}")


def test_a_rank_whose_child_was_killed_for_memory_says_so_and_the_next_attempt_goes_on(make_job: StartJob, through: list[str]) -> None:
    job = make_job({"steps": 8, "commit_every": 2, "faults": [{"kind": "feed_child", "step": 3, "attempt": 1, "value": MORE_MB}]}, ranks=1)
    job.start(through=through)
    assert job.wait() == 0
    killed, done = job.ends()
    assert (killed.kind, killed.exit_code, done.kind) == ("out_of_memory", 75, "done")
    assert killed.message.startswith("rank 0, step 3: CalledProcessError:")
    assert killed.message.endswith("; the kernel had killed a process of its control group for memory")
    assert job.result()["state"] == expected_state(8, 1)


def test_a_crash_beside_no_killing_is_a_crash(make_job: StartJob, through: list[str]) -> None:
    job = make_job({"steps": 4, "faults": [{"kind": "sigkill", "step": 2}]}, ranks=1)
    job.start(through=through)
    assert job.wait() == 0
    assert [end.kind for end in job.ends()] == ["crashed", "done"]
