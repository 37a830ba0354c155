"""What a flow needs beside its parameters: launchers, the person who watches, the clock. Tests and the command line set their own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from stagecoach.contract.launch import JobState, Launcher
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.launch.registry import get_launcher
from stagecoach.launch.submit import POLL_S
from stagecoach.stages import StageResult, StageTask
from stagecoach.stages.evaluation import evaluator
from stagecoach.stages.runner import Evaluate


class View(Protocol):
    """Somebody who watches a stage."""

    def state(self, state: JobState) -> None: ...
    def poll(self, folder: JobFolder) -> None: ...
    def wants_cancel(self) -> bool: ...


class NoView:
    """Nobody watches: a worker's pod."""

    def state(self, state: JobState) -> None: ...
    def poll(self, folder: JobFolder) -> None: ...

    def wants_cancel(self) -> bool:
        return False


def launcher_of(name: str, ranks: int) -> Launcher:
    """Raises ConfigError for a launcher that is not there, or cannot hold so many ranks."""
    return get_launcher(name, ranks=ranks)


def no_view(_run_id: str, _plan: StagePlan) -> AbstractContextManager[View]:
    return nullcontext(NoView())


@dataclass
class Outcome:
    """How far a flow got, kept outside of Prefect, so that Prefect's own failures can be told from the pipeline's."""

    run_id: str | None = None
    results: list[StageResult] = field(default_factory=list)
    error: BaseException | None = None  # of the pipeline; None when Prefect failed
    is_done: bool = False


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """`retry_delays_s`: between the tries of a stage whose error time may heal."""

    launcher: Callable[[str, int], Launcher] = launcher_of
    view: Callable[[str, StagePlan], AbstractContextManager[View]] = no_view
    evaluation: Callable[[StageTask, Launcher, str | None], Evaluate | None] = evaluator
    outcome: Outcome = field(default_factory=Outcome)
    after_fatal: bool = False
    poll_s: float = POLL_S
    retry_delays_s: tuple[float, ...] = (10.0, 30.0, 60.0, 120.0, 300.0)


_CURRENT: ContextVar[Surroundings | None] = ContextVar("stagecoach_surroundings", default=None)


def current() -> Surroundings:
    return _CURRENT.get() or Surroundings()


@contextmanager
def surrounded(surroundings: Surroundings) -> Iterator[Any]:
    """Within, flows use these."""
    token = _CURRENT.set(surroundings)
    try:
        yield surroundings
    finally:
        _CURRENT.reset(token)
