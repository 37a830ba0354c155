"""What a supervisor takes for its attempt's processes, and kills when that is over."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach.supervisor import ranks
from stagecoach.supervisor.logs import Shipper, Tee
from stagecoach.supervisor.outcome import RankState

_SUPERVISOR = """
import subprocess, sys
from stagecoach.supervisor.processes import become_subreaper, kill_descendants
become_subreaper()
spared = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
doomed = subprocess.Popen(["sleep", "1000"])
while spared.poll() is None:
    assert kill_descendants({spared.pid}) == 0
print(spared.stdout.read().strip(), doomed.wait())
"""
_SPARED = """
import subprocess
children = [subprocess.Popen(["sleep", "1000"]) for _ in range(200)]
print(sum(child.poll() is not None for child in children))
for child in children:
    child.kill()
"""


def test_what_a_spared_process_starts_is_spared_from_its_first_moment() -> None:
    run = subprocess.run([sys.executable, "-c", _SUPERVISOR, _SPARED], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["0", "-9"]


def test_a_rank_whose_exit_code_its_parent_took_may_have_been_killed_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = [3, 4]
    monkeypatch.setattr(ranks, "oom_kills", lambda: kills.pop(0))

    async def end_of_rank() -> RankState:
        job = JobFolder.open(f"file://{tmp_path}/job")
        group = ranks.RankGroup(ranks=[0], folder=tmp_path / "attempt-1", attempt=1, shipper=Shipper(job), tee=Tee())
        group.agent_ended_at = time.monotonic() - 2.0
        group.settle(1.0)
        state = group.states[0]
        group.close()
        return state

    state = asyncio.run(end_of_rank())
    assert (state.returncode, state.outcome, state.out_of_memory) == (None, None, True)
