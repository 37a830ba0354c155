"""Waits until this node's devices are free. Kueue admits a preemptor as soon as its victim is suspended, while the victim's ranks may
still be saving on the same devices for their whole grace period: a newcomer that starts then fails for want of memory, and that is counted.

A probe is a command that prints one line for every device that somebody else holds. By default, in a pod, it asks nvidia-smi how much
memory is in use.
"""

import asyncio
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.log import logger
from stagecoach.supervisor.waiting import pause, unless_stopped

NVIDIA = ("nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits")
IDLE_MIB = 2048  # a driver's own share stays below it; any training is above
LOOK_S = 1.0
TELL_S = 15.0
PROBE_S = 20.0


async def wait_for_devices(probe: str | None, *, hardware: str, deadline_s: float, stop: asyncio.Event) -> None:
    """Returns once the probe finds no device busy. `probe` None: the default of the hardware; "": none at all.

    Raises ClusterUnavailable (75) after `deadline_s`, ConfigError for a probe that cannot be run, StopRequested.
    """
    look = probe_of(probe, hardware)
    if look is None:
        return
    began = told_at = time.monotonic()
    while busy := await unless_stopped(stop, busy_devices, look):
        now = time.monotonic()
        if now - began > deadline_s:
            raise ClusterUnavailable(f"devices are still held by somebody else after {deadline_s:.0f} s: {'; '.join(busy)}")
        if now - told_at > TELL_S or told_at == began:
            told_at = now
            logger.info(f"waits for its devices, which somebody else still holds: {'; '.join(busy)}")
        await pause(LOOK_S, stop=stop)
    if (waited := time.monotonic() - began) > LOOK_S:
        logger.info(f"the devices are free after {waited:.1f} s")


def probe_of(probe: str | None, hardware: str) -> Sequence[str] | None:
    """The command, or None where there is nothing to ask. Raises ConfigError."""
    if probe is None:
        return NVIDIA if not hardware.startswith("cpu") and shutil.which(NVIDIA[0]) else None
    try:
        return shlex.split(probe) or None
    except ValueError as error:
        raise ConfigError(f"environment variable STAGECOACH_DEVICE_PROBE={probe!r}: no command line ({error})") from None


def busy_devices(look: Sequence[str]) -> list[str]:
    """One line a device that is held. A default probe that fails (a driver that does not answer) says nothing: the ranks will.

    Raises ConfigError for a probe of one's own that cannot be run or fails.
    """
    try:
        done = subprocess.run(look, capture_output=True, text=True, check=True, timeout=PROBE_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        if look is NVIDIA:
            logger.warning(f"nvidia-smi cannot say whether the devices are free: {error}")
            return []
        raise ConfigError(f"STAGECOACH_DEVICE_PROBE: {shlex.join(look)} fails: {error}") from error
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return [said for line in lines if (said := _held(line))] if look is NVIDIA else lines


def _held(line: str) -> str:
    """`3, 41230` is a device in use; "" for an idle one, and for what is no number."""
    index, _, used = line.partition(",")
    mib = int(used) if used.strip().isdigit() else 0
    return f"device {index.strip()} has {mib} MiB in use" if mib > IDLE_MIB else ""
