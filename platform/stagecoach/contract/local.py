"""What ranks and their supervisor share in the node's local folder (`STAGECOACH_LOCAL_DIR`; interfaces.md section 4).

    heartbeat-{rank}      a slot: counter, step, phase, numbers
    outcome-{rank}.json   a slot too: how the rank ended (`RankOutcome`); blank until then
    log-{rank}            a FIFO: standard output and error, read by the supervisor
    events-{rank}         a FIFO: one JSON object a line

A slot is a file of fixed size, made by the supervisor with every byte written, so that a rank can report on a disk that is full.
"""

import json
import math
import mmap
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stagecoach.contract.job import RankOutcome
from stagecoach.contract.records import decode, encode
from stagecoach.errors import ContractError

SLOT_BYTES = 4096
OUTCOME_BYTES = 16384
MAX_MESSAGE_CHARS = 4000  # in UTF-8 and escaped it stays within OUTCOME_BYTES
NAME_CHARS = 15  # of a process: the kernel keeps no more

_RANK_NAME = re.compile(r"rank-(\d+)\.(\d+)")
_HEADER = struct.Struct("<II")  # CRC-32 and length of the body: a reader who meets a torn write sees it and looks again


def rank_name(rank: int, attempt: int) -> str:
    """What a rank's process is called once it knows who it is, in `ps` and `top` too: rank-3.2 is rank 3 of attempt 2."""
    return f"rank-{rank}.{attempt}"[:NAME_CHARS]


def rank_and_attempt(name: str) -> tuple[int, int] | None:
    """Of a process of that name; None for any other."""
    found = _RANK_NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def heartbeat_path(local_dir: Path, rank: int) -> Path:
    return local_dir / f"heartbeat-{rank}"


def outcome_path(local_dir: Path, rank: int) -> Path:
    return local_dir / f"outcome-{rank}.json"


def log_path(local_dir: Path, rank: int) -> Path:
    return local_dir / f"log-{rank}"


def events_path(local_dir: Path, rank: int) -> Path:
    return local_dir / f"events-{rank}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """One beat. `counter` rises with every beat of the rank's main thread; `step` is the last optimizer step that is complete."""

    counter: int = 0
    step: int = 0
    phase: str = "start"
    numbers: Mapping[str, float] = field(default_factory=dict)  # tokens, loss, committed_step, seconds_compute, …; finite


class HeartbeatWriter:
    """The rank's side. Writing is two copies into mapped memory: no system call, no allocation on the disk."""

    def __init__(self, path: Path) -> None:
        """Opens the slot, and makes it where no supervisor did. Raises OSError."""
        prepare_slot(path, SLOT_BYTES)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SLOT_BYTES)

    def write(self, beat: Heartbeat) -> None:
        """Replaces the last beat. Numbers that are not finite, or too many to fit, are left out."""
        numbers = {name: value for name, value in beat.numbers.items() if math.isfinite(value)}
        body = _beat_json(beat, numbers)
        if len(body) > SLOT_BYTES - _HEADER.size:
            body = _beat_json(beat, {})
        self._memory[: _HEADER.size + len(body)] = _HEADER.pack(zlib.crc32(body), len(body)) + body


def _beat_json(beat: Heartbeat, numbers: Mapping[str, float]) -> bytes:
    return json.dumps({"counter": beat.counter, "step": beat.step, "phase": beat.phase[:100], "numbers": dict(numbers)}).encode()


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The last beat; None before the first, or when it is being written just now."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if len(raw) < _HEADER.size:
        return None
    checksum, length = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size : _HEADER.size + length]
    if not length or zlib.crc32(body) != checksum:
        return None
    return Heartbeat(**json.loads(body))


def write_outcome(local_dir: Path, outcome: RankOutcome) -> None:
    """Leaves the rank's last word. Raises OSError only where no supervisor prepared the slot and the disk is full."""
    path = outcome_path(local_dir, outcome.rank)
    prepare_slot(path, OUTCOME_BYTES, fill=b" ")
    body = encode(outcome)
    with path.open("r+b", buffering=0) as file:
        file.write(body.ljust(OUTCOME_BYTES))


def read_outcome(local_dir: Path, rank: int) -> RankOutcome | None:
    """How the rank ended; None when it left no word, or was killed while writing it."""
    path = outcome_path(local_dir, rank)
    try:
        body = path.read_bytes()
    except OSError:
        return None
    try:
        return decode(RankOutcome, body, uri=str(path)) if body.strip() else None
    except ContractError:
        return None


def prepare_slot(path: Path, size: int, *, fill: bytes = b"\0") -> None:
    """Makes the file at its full size, every byte written, unless it is there. Raises OSError."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(fill * size)
    temporary.rename(path)
