"""A newcomer waits for devices that a victim still saves on; the probe is a real program."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.constants import ExitCode
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.supervisor import devices, main
from stagecoach.supervisor.devices import NVIDIA, busy_devices, probe_of, wait_for_devices
from stagecoach.supervisor.node import Node
from stagecoach.supervisor.settings import read_settings
from stagecoach.supervisor.waiting import StopRequested
from stagecoach.testing.builders import launch_spec, submission

COUNTING = """
import sys
from pathlib import Path
looks = Path(sys.argv[1])
with looks.open("a") as file:
    file.write("x")
if len(looks.read_text()) <= int(sys.argv[2]):
    print("device 0 is saving for somebody else")
"""


def counting(folder: Path, busy: int) -> str:
    """A probe that finds its device busy so often."""
    program = folder / "probe.py"
    program.write_text(COUNTING)
    return f"{sys.executable} {program} {folder / 'looks'} {busy}"


async def wait(probe: str | None, *, deadline_s: float = 60.0, stop: asyncio.Event | None = None, hardware: str = "h100") -> None:
    await wait_for_devices(probe, hardware=hardware, deadline_s=deadline_s, stop=stop or asyncio.Event())


def test_it_waits_until_the_probe_finds_nothing_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LOOK_S", 0.01)
    asyncio.run(wait(counting(tmp_path, busy=3)))
    assert (tmp_path / "looks").read_text() == "xxxx"


def test_a_device_that_stays_busy_is_told_and_counted_as_the_clusters_fault(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnavailable, match=r"still held by somebody else.*device 0 is saving") as told:
        asyncio.run(wait(counting(tmp_path, busy=1000), deadline_s=0.0))
    assert told.value.exit_code == 75


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    async def stopped() -> None:
        stop = asyncio.Event()
        waiting = asyncio.create_task(wait(counting(tmp_path, busy=1000), stop=stop))
        while not (tmp_path / "looks").exists():
            await asyncio.sleep(0.01)
        stop.set()
        await waiting

    with pytest.raises(StopRequested):
        asyncio.run(stopped())


def test_nothing_is_asked_where_there_is_nothing_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_of("", "h100") is None
    assert probe_of(None, "cpu") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert probe_of(None, "h100") is None


@pytest.mark.parametrize("probe", ["/no/such/program", "false"])
def test_a_probe_that_cannot_be_run_is_the_authors_to_mend(probe: str) -> None:
    with pytest.raises(ConfigError, match="STAGECOACH_DEVICE_PROBE"):
        asyncio.run(wait(probe))
    with pytest.raises(ConfigError, match="no command line"):
        probe_of("'unclosed", "cpu")


def test_nvidia_smis_answer_is_read_by_memory_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, 12\\n1, 41230\\n2, [N/A]\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert probe_of(None, "h200") is NVIDIA
    assert busy_devices(NVIDIA) == ["device 1 has 41230 MiB in use"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert busy_devices(NVIDIA) == []


class Supervisor:
    """One in this process, with no ranks: what it would begin is noted with what the ledger and the probe say then."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job = JobFolder.open(f"file://{folder}/job")
        self.looks = folder / "looks"
        self.began: list[tuple[int, list[int]]] = []  # looks at the devices, attempts claimed
        assert self.job.claim_submission(submission(launch_spec(job_uri=self.job.uri)))
        monkeypatch.setattr(devices, "LOOK_S", 0.01)
        for name in ("keep_sweeper", "limit_time"):
            monkeypatch.setattr(Node, name, lambda _: None)
        monkeypatch.setattr("stagecoach.supervisor.agents.WarmAgents.warm", lambda *_: None)
        monkeypatch.setattr("stagecoach.supervisor.signals.listen", self._listen)
        monkeypatch.setattr(main, "attempts", self._attempts)

    def _listen(self, on_stop: Callable[[float], None]) -> None:
        self.stop = on_stop

    async def _attempts(self, node: Node) -> tuple[int, str]:
        self.began.append((len(self.looks.read_text()), self.job.attempt_numbers()))
        return ExitCode.DONE, "began"

    async def run(self, probe: str) -> int:
        """Its exit code."""
        said = {"STAGECOACH_JOB_URI": self.job.uri, "STAGECOACH_SUBMISSION": "1", "STAGECOACH_NODE_INDEX": "0", "STAGECOACH_PORT": "0"}
        settings = read_settings({**said, "STAGECOACH_HOST": "127.0.0.1", "STAGECOACH_DEVICE_PROBE": probe})
        code, _ = await main.supervise(settings)
        return code


def test_a_supervisor_begins_nothing_before_its_devices_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(tmp_path, monkeypatch)
    assert asyncio.run(supervisor.run(counting(tmp_path, busy=3))) == ExitCode.DONE
    assert supervisor.began == [(4, [])]


def test_a_supervisor_stopped_while_it_waits_has_claimed_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(tmp_path, monkeypatch)

    async def stopped() -> int:
        waiting = asyncio.create_task(supervisor.run(counting(tmp_path, busy=100_000)))
        while not supervisor.looks.exists():
            await asyncio.sleep(0.01)
        supervisor.stop(0.0)
        return await waiting

    assert asyncio.run(stopped()) == ExitCode.STOPPED
    assert (supervisor.began, supervisor.job.attempt_numbers()) == ([], [])
