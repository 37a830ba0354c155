"""What a supervisor is told, all of it by environment: a pod template is static, and so the same for every attempt.

STAGECOACH_JOB_URI         the job's folder (needed)
STAGECOACH_SUBMISSION      k: the LaunchSpec is in submissions/{k}.json (needed)
STAGECOACH_NODE_INDEX      this node, from 0; else JOB_COMPLETION_INDEX, which an Indexed Job sets (one of them needed)
STAGECOACH_GRACE_S         from SIGTERM to SIGKILL (30)
STAGECOACH_PORT            /metrics, /healthz, /rendezvous (29400; 0: any free one)
STAGECOACH_HOST            where peers reach this node (its host name)
STAGECOACH_MACHINE         what a person knows this machine by (its host name)
STAGECOACH_HANG_S          the watchdog's deadline after the first step (max(60, 5 x the median step))
STAGECOACH_FIRST_STEP_S    and until the first step, and in a first evaluation (600)
STAGECOACH_RENDEZVOUS_S    how long nodes wait for each other (600)
STAGECOACH_DEVICE_PROBE    a command that prints a line for every device somebody else holds (nvidia-smi where there is one; empty: none)
STAGECOACH_LOCAL_STATE     where the local launcher reads pid and exit; no other launcher sets it
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stagecoach.contract.names import whole_number
from stagecoach.errors import ConfigError

DEFAULT_PORT = 29400
FIRST_STEP_S = 600.0  # compile, restore and the first read of data may take long
RENDEZVOUS_S = 600.0  # a gang's pods may pull their image one after another


@dataclass(frozen=True, kw_only=True)
class SupervisorSettings:
    """The variables above, checked."""

    job_uri: str
    submission: int
    node: int
    grace_s: int
    port: int
    host: str  # where peers reach this node
    machine: str  # the name a person knows it by
    local_state: Path | None
    hang_s: float | None
    first_step_s: float
    rendezvous_s: float
    device_probe: str | None = None

    @property
    def stop_s(self) -> float:
        """How long ranks may take to save after SIGTERM: the grace period less min(5 s, a quarter of it) for what we do after them."""
        return self.grace_s - min(5.0, self.grace_s / 4)


def read_settings(environ: Mapping[str, str] = os.environ) -> SupervisorSettings:
    """Raises ConfigError that names the variable."""
    hostname = socket.gethostname()
    local_state = environ.get("STAGECOACH_LOCAL_STATE")
    node = environ.get("STAGECOACH_NODE_INDEX") or environ.get("JOB_COMPLETION_INDEX")
    if node is None:
        raise ConfigError("neither STAGECOACH_NODE_INDEX nor JOB_COMPLETION_INDEX is set; set one to this node's index, from 0")
    if not environ.get("STAGECOACH_JOB_URI"):
        raise ConfigError("STAGECOACH_JOB_URI is not set; set it to the job's folder, like file:///data/runs/r1/stages/00-pretrain")
    return SupervisorSettings(
        job_uri=environ["STAGECOACH_JOB_URI"],
        submission=_whole(environ, "STAGECOACH_SUBMISSION", None),
        node=_whole({"STAGECOACH_NODE_INDEX": node}, "STAGECOACH_NODE_INDEX", None),
        grace_s=_whole(environ, "STAGECOACH_GRACE_S", 30),
        port=_whole(environ, "STAGECOACH_PORT", DEFAULT_PORT),
        host=environ.get("STAGECOACH_HOST") or hostname,
        machine=environ.get("STAGECOACH_MACHINE") or hostname,
        local_state=Path(local_state) if local_state else None,
        hang_s=_seconds(environ, "STAGECOACH_HANG_S", None),
        first_step_s=_seconds(environ, "STAGECOACH_FIRST_STEP_S", FIRST_STEP_S) or FIRST_STEP_S,
        rendezvous_s=_seconds(environ, "STAGECOACH_RENDEZVOUS_S", RENDEZVOUS_S) or RENDEZVOUS_S,
        device_probe=environ.get("STAGECOACH_DEVICE_PROBE", "" if local_state else None),  # a pod sees only its own devices
    )


def _whole(environ: Mapping[str, str], name: str, default: int | None) -> int:
    value = environ.get(name, "" if default is None else str(default))
    number = whole_number(value)
    if number is None:
        raise ConfigError(f"environment variable {name}={value!r}; expected a whole number")
    return number


def _seconds(environ: Mapping[str, str], name: str, default: float | None) -> float | None:
    value = environ.get(name)
    if not value:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"environment variable {name}={value!r}; expected seconds, more than 0")
    return seconds
