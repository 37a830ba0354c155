"""A newcomer waits for devices that a victim still saves on; the probe is a real program."""

import asyncio
import sys
from pathlib import Path

import pytest

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.supervisor import devices
from stagecoach.supervisor.devices import NVIDIA, busy_devices, probe_of, wait_for_devices
from stagecoach.supervisor.waiting import StopRequested

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
