"""From what ranks left behind to how their node ended. Pure: everything it needs is in its arguments."""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stagecoach.constants import ExitCode
from stagecoach.contract.job import Ending, RankExit, RankOutcome
from stagecoach.contract.records import Record


@dataclass(frozen=True, kw_only=True)
class RankState:
    """One rank as the supervisor sees it. Times are of this machine's monotonic clock."""

    rank: int
    outcome: RankOutcome | None = None
    ended_at: float | None = None  # None: it runs
    returncode: int | None = None  # negative: the signal; None where nobody could tell
    killed: bool = False  # by this supervisor, so its end says nothing
    out_of_memory: bool = False  # the kernel killed something of this control group for memory just before this rank went
    stack: str | None = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None and self.outcome.kind == "done"

    @property
    def is_stopped(self) -> bool:
        return self.outcome is not None and self.outcome.kind == "stopped"

    @property
    def has_failed(self) -> bool:
        """Ended of itself, neither done nor stopped."""
        return self.ended_at is not None and not self.killed and not self.is_done and not self.is_stopped

    @property
    def blames_peer(self) -> bool:
        """It failed because another rank went away."""
        return self.outcome is not None and self.outcome.kind == "peer_lost"


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """How a node ended. `is_weak`: only consequences are known; the cause is on another node, or still to be seen."""

    kind: Ending
    exit_code: int
    message: str = ""
    first_failed_rank: int | None = None
    is_weak: bool = False
    ranks: tuple[RankExit, ...] = ()


def judge(ranks: Sequence[RankState], *, stop_requested: bool = False) -> Verdict | None:
    """The node's verdict, None while there is none yet.

    The first failed rank decides: a fatal code (40-49) of it wins, everything else is 75. After SIGTERM only a fatal code changes that
    the node was stopped. 0 needs every rank's word that it is done, 143 every rank's that it is done or stopped.
    """
    first = first_failed(ranks)
    everybody_ended = all(state.ended_at is not None for state in ranks)
    if first is not None and (not stop_requested or everybody_ended):
        verdict = _failure(first, ranks)
        if stop_requested and not ExitCode(verdict.exit_code).is_fatal:
            return _stopped(ranks, f"stopped by the platform; while stopping: {verdict.message}")
        return verdict
    if not everybody_ended:
        return None
    if all(state.is_done for state in ranks):
        return Verdict(kind="done", exit_code=ExitCode.DONE, ranks=_exits(ranks))
    return _stopped(ranks, next((state.outcome.message for state in ranks if state.outcome and state.outcome.kind == "stopped"), ""))


def first_failed(ranks: Iterable[RankState]) -> RankState | None:
    """The rank whose failure the others follow: one that blames a peer only when all failed ones do."""
    failed = [state for state in ranks if state.has_failed]
    return min(failed, key=lambda state: (state.blames_peer, _failed_at(state)), default=None)


def hung(ranks: Sequence[RankState], culprit: RankState, message: str) -> Verdict:
    """The verdict when the watchdog tripped."""
    return Verdict(kind="hung", exit_code=ExitCode.RETRY, message=message, first_failed_rank=culprit.rank, ranks=_exits(ranks))


def not_started(kind: Ending, message: str, *, is_weak: bool = False) -> Verdict:
    """The verdict when no rank could tell: no rendezvous, no torchrun, a lost peer."""
    return Verdict(kind=kind, exit_code=ExitCode.RETRY, message=message, is_weak=is_weak)


def signal_name(number: int) -> str:
    """SIGKILL, SIGSEGV, …"""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failed_at(state: RankState) -> float:
    if state.outcome is not None and state.outcome.monotonic_s:
        return state.outcome.monotonic_s
    return state.ended_at or 0.0


def _failure(first: RankState, ranks: Sequence[RankState]) -> Verdict:
    exits = _exits(ranks)
    if first.blames_peer:
        left_early = [state.rank for state in ranks if state.is_done]
        if left_early:
            names = ", ".join(map(str, left_early))
            message = f"rank {names} returned as done while other ranks still worked; {_message_of(first)}"
            return Verdict(kind="crashed", exit_code=ExitCode.RETRY, message=message, first_failed_rank=left_early[0], ranks=exits)
        message = _message_of(first)
        return Verdict(kind="peer_lost", exit_code=ExitCode.RETRY, message=message, first_failed_rank=first.rank, is_weak=True, ranks=exits)
    kind, code = _kind_of(first)
    return Verdict(kind=kind, exit_code=code, message=_message_of(first), first_failed_rank=first.rank, ranks=exits)


def _kind_of(state: RankState) -> tuple[Ending, int]:
    if state.outcome is not None and not state.out_of_memory:
        return state.outcome.kind, state.outcome.exit_code
    return ("out_of_memory" if state.out_of_memory else "crashed"), ExitCode.RETRY


def _message_of(state: RankState) -> str:
    if state.outcome is not None:
        killed = "; the kernel had killed a process of its control group for memory" if state.out_of_memory else ""
        return state.outcome.message + killed
    if state.out_of_memory:
        return f"rank {state.rank} was killed by the kernel: its control group ran out of memory"
    if state.returncode is None:
        return f"rank {state.rank} ended without a word"
    if state.returncode < 0:
        return f"rank {state.rank} was killed by {signal_name(-state.returncode)}"
    return f"rank {state.rank} ended with exit code {state.returncode} and without a word"


def _stopped(ranks: Sequence[RankState], message: str) -> Verdict:
    late = [str(state.rank) for state in ranks if state.killed and not state.is_done and not state.is_stopped]
    if late:
        message = f"{message or 'stopped by the platform'}; killed when their time to save was over: rank {', '.join(late)}"
    return Verdict(kind="stopped", exit_code=ExitCode.STOPPED, message=message or "stopped by the platform", ranks=_exits(ranks))


def _exits(ranks: Sequence[RankState]) -> tuple[RankExit, ...]:
    return tuple(
        RankExit(
            rank=state.rank,
            returncode=state.returncode,
            kind=state.outcome.kind if state.outcome else None,
            message=_message_of(state)
            if state.ended_at is not None and not state.killed
            else (state.outcome.message if state.outcome else ""),
            stack=state.stack,
        )
        for state in ranks
    )
