"""Holding a run (pause, cancel), asking for it again, and telling whether somebody watches it. All of it in the bucket."""

import getpass
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal, NoReturn, TypeVar

from loguru import logger

from stagecoach.constants import ExitCode
from stagecoach.contract.control import ControllerBeat, Hold, RunRequest
from stagecoach.contract.ledger import Runs
from stagecoach.contract.records import Stored, decode, encode
from stagecoach.errors import ConfigError, StagecoachError, StorageError
from stagecoach.storage import NotFound

BEAT_S = 10.0  # a controller says so often that it is there
SILENT_S = 35.0  # a controller whose beat has not moved for so long is gone: three beats and a slow write

Kind = Literal["pause", "cancel"]
S = TypeVar("S", bound=Stored)


class RunHeld(StagecoachError):
    """Somebody paused or cancelled the run: nothing of it is submitted until the hold is lifted."""

    exit_code: ClassVar[ExitCode] = ExitCode.STOPPED

    def __init__(self, says: str, hold: Hold) -> None:
        super().__init__(says)
        self.hold = hold


@dataclass(frozen=True)
class Control:
    """The control objects of one run."""

    runs: Runs
    run_id: str

    def hold(self, kind: Kind, reason: str = "") -> bool:
        """False when it was held so before."""
        return self.runs.store.create_if_absent(self._key(kind), encode(Hold(kind=kind, by=who(), reason=reason, at=_now())))

    def held(self) -> Hold | None:
        """The hold that is in force; a cancel weighs more than a pause."""
        return self._read(self._key("cancel"), Hold) or self._read(self._key("pause"), Hold)

    def lift(self, kind: Kind) -> bool:
        """False when there was no such hold."""
        was_there = self.runs.store.exists(self._key(kind))
        self.runs.store.delete(self._key(kind))
        return was_there

    def put_back(self, hold: Hold) -> None:
        """A hold that was lifted for nothing, with its words."""
        self.runs.store.create_if_absent(self._key(hold.kind), encode(hold))

    def check(self) -> None:
        """Raises RunHeld with the way on."""
        hold = self.held()
        if hold is not None:
            self._raise(hold)

    def check_unpaused(self) -> None:
        """Raises RunHeld for a paused run, cancelled or not. One that is only cancelled goes on when somebody asks for it again."""
        pause = self._read(self._key("pause"), Hold)
        if pause is not None:
            self._raise(pause)

    def _raise(self, hold: Hold) -> NoReturn:
        why = f" ({hold.reason})" if hold.reason else ""
        if hold.kind == "pause":
            says = f"run {self.run_id} is paused{why}; `stagecoach unpause {self.run_id}`, then `stagecoach resume {self.run_id}`"
        else:
            says = f"run {self.run_id} was cancelled{why}; `stagecoach resume {self.run_id}` goes on with it"
        raise RunHeld(says, hold)

    def ask(self, request: RunRequest) -> None:
        """Keeps how the run was asked for; the newest word counts."""
        self.runs.store.publish(f"runs/{self.run_id}/request.json", encode(request))

    def take_back(self, request: RunRequest, before: RunRequest | None) -> None:
        """The word before counts again, where `request` is still the newest one."""
        if before is not None and self.request() == request:
            self.ask(before)

    def request(self) -> RunRequest | None:
        return self._read(f"runs/{self.run_id}/request.json", RunRequest)

    def beat(self, beat: ControllerBeat) -> None:
        self.runs.store.publish(f"runs/{self.run_id}/control/controller.json", encode(beat))

    def last_beat(self) -> ControllerBeat | None:
        return self._read(f"runs/{self.run_id}/control/controller.json", ControllerBeat)

    def _key(self, kind: Kind) -> str:
        return f"runs/{self.run_id}/control/{kind}.json"

    def _read(self, key: str, kind: type[S]) -> S | None:
        try:
            body = self.runs.store.read(key)
        except NotFound:
            return None
        return decode(kind, body, uri=self.runs.store.uri_of(key))


class Heartbeat:
    """Tells others that this process watches the run, at most every BEAT_S. A bucket that does not answer never ends the watching."""

    def __init__(self, control: Control, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._control, self._clock = control, clock
        self._said_at = float("-inf")
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._beat = time.time_ns() // 1_000_000  # begins above whatever an earlier controller counted to

    def __call__(self, stage: str) -> None:
        now = self._clock()
        if now - self._said_at < BEAT_S:
            return
        self._said_at, self._beat = now, self._beat + 1
        try:
            self._control.beat(ControllerBeat(controller=self._name, beat=self._beat, stage=stage, at=_now()))
        except StorageError as error:
            logger.warning("run {}: the controller's beat could not be written: {}", self._control.run_id, error)


def request_of(runs: Runs, run_id: str) -> RunRequest:
    """How the run was last asked for. Raises ConfigError where there is no such run, or nobody kept a request."""
    run = runs.run(run_id)
    if run is None:
        raise ConfigError(f"no run {run_id!r} under {runs.store.uri}; `stagecoach runs` lists what is there")
    request = Control(runs, run_id).request()
    if request is None:
        raise ConfigError(
            f"run {run_id} was not started by `stagecoach run` (no request.json beside its run.json); go on with it by the command it "
            f"was started with, and --run-id {run_id}"
        )
    return request


def who() -> str:
    """`user@host` of this process; a container's user may have no name."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"{os.getuid()}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
