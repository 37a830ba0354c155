"""The first thing every rank runs: `python -m stagecoach_workloads.rank MODULE:FUNCTION`, started by torchrun under the supervisor.
With `--wait` its agent started it ahead of need (`stagecoach_workloads.warm`).

It ties the process to its parent, sends its output to the supervisor, turns SIGTERM into a flag, calls FUNCTION(context), and always
leaves an outcome, from which the supervisor takes the exit code of the node (architecture.md section 2). It imports no torch itself.
"""

import atexit
import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from stagecoach.contract.job import RankOutcome
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.local import Heartbeat, HeartbeatWriter, events_path, heartbeat_path, log_path, rank_name, write_outcome
from stagecoach.contract.names import whole_number
from stagecoach.errors import ConfigError
from stagecoach_workloads.events import EventPipe
from stagecoach_workloads.imports import without_collections
from stagecoach_workloads.outcomes import Stopped, outcome_of
from stagecoach_workloads.processes import (
    AGENT_PID,
    die_with_parent,
    keep_guard,
    let_children_die_too,
    let_supervisor_look,
    name_process,
    parent_from_environment,
)
from stagecoach_workloads.warm import WAIT, wait_to_be_told

__all__ = ["RankContext", "Stopped", "main"]


@dataclass(kw_only=True)
class RankContext:
    """What a workload gets: who it is, where its job lives, how it reports."""

    job: JobFolder
    attempt: int
    submission: int
    rank: int
    local_rank: int
    world_size: int
    node: int
    nodes: int
    ranks_per_node: int
    local_dir: Path
    grace_s: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # JobRecord.settings of a job that is no stage

    _stop: bool = field(default=False, init=False)
    _stop_at: float | None = field(default=None, init=False)
    _leaves_at_once: bool = field(default=False, init=False)
    _beat: Heartbeat = field(default_factory=Heartbeat, init=False)
    _writer: HeartbeatWriter | None = field(default=None, init=False)
    _events: EventPipe = field(init=False)

    def __post_init__(self) -> None:
        self._events = EventPipe(events_path(self.local_dir, self.rank))
        with contextlib.suppress(OSError):  # a full disk must not stop a rank; without beats the watchdog sees it as silent
            self._writer = HeartbeatWriter(heartbeat_path(self.local_dir, self.rank))

    def heartbeat(self, *, step: int, phase: str, **numbers: float) -> None:
        """Says that the main thread moves: after each step, and every few seconds inside long phases. Never raises.

        `step` is the last complete optimizer step. In phase "train" the *step* must move within the watchdog's deadline, in any other
        phase the beat must. Numbers stay until replaced: steps, tokens, images, loss, tokens_per_s, mfu, eta_s, committed_step, and
        seconds_{bucket} (init, restore, data_wait, compute, checkpoint_stall, evaluation); rank 0's become `progress.json`.
        """
        merged = {**self._beat.numbers, **numbers}
        self._beat = Heartbeat(counter=self._beat.counter + 1, step=step, phase=phase, numbers=merged)
        if self._writer is not None:
            self._writer.write(self._beat)

    def stop_requested(self) -> bool:
        """True once the platform asked to stop. Ask every step and inside every long phase; save, then raise Stopped."""
        return self._stop

    def event(self, name: str, value: Any, *, step: int | None = None) -> None:
        """Adds one line to this rank's events in the bucket. Never blocks and never raises: what does not fit is counted and said."""
        self._events.write({"t": time.time(), "step": self._beat.step if step is None else step, "name": name, "value": value})

    @property
    def last_beat(self) -> Heartbeat:
        """The last beat written."""
        return self._beat

    def request_stop(self) -> None:
        """What SIGTERM does. For tests of workloads. Raises Stopped inside `leaving_at_once`."""
        self._stop = True
        if self._stop_at is None:
            self._stop_at = time.monotonic()
        if self._leaves_at_once:
            raise Stopped(committed_step=int(self._beat.numbers.get("committed_step", 0)))

    @contextlib.contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """While nothing new is there to save (rendezvous, restore, compilation), a stop raises Stopped wherever the main thread is."""
        self._leaves_at_once = True
        try:
            if self._stop:
                self.request_stop()
            yield
        finally:
            self._leaves_at_once = False

    def grace_left_s(self) -> float:
        """Seconds until the supervisor kills this rank, as far as it knows; the whole of it before a stop was asked for."""
        grace = self.grace_s - min(5.0, self.grace_s / 4)  # the supervisor's own margin (reliability.md section 3)
        return grace if self._stop_at is None else max(0.0, grace - (time.monotonic() - self._stop_at))

    def close(self) -> None:
        """Sends the last events."""
        self._events.close()


def main(argv: list[str]) -> NoReturn:
    """Runs the entrypoint argv[0] as this rank and ends the process with the code of its outcome."""
    die_with_parent(parent_from_environment(AGENT_PID))
    let_children_die_too()
    let_supervisor_look()
    if WAIT in argv[1:]:
        with contextlib.suppress(Exception):  # what fails now fails again below, where it is told
            import_ahead(argv[0])
        wait_to_be_told()
    try:
        rank, local_dir = _number("RANK"), Path(_variable("STAGECOACH_LOCAL_DIR"))
        name_process(rank_name(rank, _number("STAGECOACH_ATTEMPT")))
    except ConfigError as error:
        print(error, file=sys.stderr)
        os._exit(error.job_exit_code)
    keep_guard(local_dir)
    _send_output_to(log_path(local_dir, rank))
    faulthandler.enable()
    stop = _StopFlag()
    outcome = _run(argv, rank, local_dir, stop)
    with contextlib.suppress(OSError):
        write_outcome(local_dir, outcome)
    _leave(outcome)


def _run(argv: list[str], rank: int, local_dir: Path, stop: "_StopFlag") -> RankOutcome:
    """Calls the entrypoint; whatever it raises becomes an outcome."""
    context: RankContext | None = None
    error: BaseException | None = None
    try:
        context = build_context(rank, local_dir)
        stop.attach(context)
        entrypoint = load_entrypoint(argv[0] if argv else "")
        entrypoint(context)
        if stop.requested:  # what returns after the signal may have left work undone; 0 would be for ever
            raise Stopped(committed_step=int(context.last_beat.numbers.get("committed_step", 0)))
    except BaseException as raised:
        error = raised
        if not isinstance(raised, Stopped):
            traceback.print_exc()
    beat = context.last_beat if context is not None else Heartbeat()
    if context is not None:
        context.close()
    return outcome_of(error, rank=rank, beat=beat, monotonic_s=time.monotonic())


def build_context(rank: int, local_dir: Path) -> RankContext:
    """The context from torchrun's variables and the supervisor's. Raises ConfigError that names the variable that is wrong."""
    world_size, ranks_per_node = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
    if not rank < world_size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; both are set by torchrun, never by hand")
    job = JobFolder.open(_variable("STAGECOACH_JOB_URI"))
    record = job.job()
    return RankContext(
        job=job,
        attempt=_number("STAGECOACH_ATTEMPT"),
        submission=_number("STAGECOACH_SUBMISSION"),
        rank=rank,
        local_rank=_number("LOCAL_RANK"),
        world_size=world_size,
        node=rank // ranks_per_node,
        nodes=world_size // ranks_per_node,
        ranks_per_node=ranks_per_node,
        local_dir=local_dir,
        grace_s=_number("STAGECOACH_GRACE_S"),
        settings=record.settings if record is not None else {},
    )


def load_entrypoint(path: str) -> Callable[[RankContext], None]:
    """The function named by "module:function". Raises ConfigError that says what is missing."""
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"entrypoint {path!r} is not of the form 'module:function', like 'stagecoach_workloads.preflight:main'")
    try:
        with without_collections():
            module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"entrypoint {path!r} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"entrypoint {path!r}: module {module_name} has no function {function_name!r}")
    return function


def import_ahead(path: str) -> None:
    """The entrypoint's module, and what its function `prepare` imports: a module that has one puts off its imports until `main` runs.
    Raises whatever they raise."""
    load_entrypoint(path)
    prepare = getattr(sys.modules[path.partition(":")[0]], "prepare", None)
    if prepare is not None:
        with without_collections():
            prepare()


class _StopFlag:
    """SIGTERM, remembered: it may come before there is a context."""

    def __init__(self) -> None:
        self.requested = False
        self._context: RankContext | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._context is not None:
            self._context.request_stop()

    def attach(self, context: RankContext) -> None:
        self._context = context
        if self.requested:
            context.request_stop()


def _send_output_to(fifo: Path) -> None:
    """Standard output and error into the supervisor's pipe, so that a full disk never blocks training. Without a reader they stay."""
    try:
        target = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)  # without O_NONBLOCK this waits for ever when nobody reads
    except OSError:
        return
    os.set_blocking(target, True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _leave(outcome: RankOutcome) -> NoReturn:
    """Ends without the interpreter's teardown, in which gloo's threads may abort a rank whose work is done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if outcome.exit_code == 0:
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(outcome.exit_code)


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"environment variable {name} is not set; ranks are started by `python -m stagecoach.supervisor`, not by hand")
    return value


def _number(name: str) -> int:
    value = _variable(name)
    number = whole_number(value)
    if number is None:
        raise ConfigError(f"environment variable {name}={value!r} is not a whole number; it is set by torchrun and the supervisor")
    return number


if __name__ == "__main__":
    # `-m` runs this file as __main__; the workload imports it by name. One of them must be the one whose Stopped counts.
    from stagecoach_workloads.rank import main as main_by_name

    main_by_name(sys.argv[1:])
