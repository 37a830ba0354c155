"""A table: what ranks left behind, and how their node ended."""

from dataclasses import replace

import pytest

from stagecoach.contract.job import Ending, RankOutcome
from stagecoach.supervisor.outcome import RankState, judge


def said(rank: int, kind: Ending, code: int, at: float = 10.0) -> RankState:
    outcome = RankOutcome(rank=rank, kind=kind, exit_code=code, message=f"rank {rank} says {kind}", monotonic_s=at)
    return RankState(rank=rank, outcome=outcome, ended_at=at + 0.1, returncode=code)


def silent(rank: int, returncode: int | None = -9, at: float = 10.0) -> RankState:
    return RankState(rank=rank, ended_at=at, returncode=returncode)


def runs(rank: int) -> RankState:
    return RankState(rank=rank)


TABLE = [  # states, after SIGTERM, (kind, code, first failed rank) or None
    ([runs(0), runs(1)], False, None),
    ([said(0, "done", 0), runs(1)], False, None),
    ([said(0, "done", 0), said(1, "done", 0)], False, ("done", 0, None)),
    ([said(0, "done", 0), said(1, "done", 0)], True, ("done", 0, None)),
    ([silent(0), runs(1)], False, ("crashed", 75, 0)),
    ([silent(0, 0), runs(1)], False, ("crashed", 75, 0)),
    ([silent(0, 41), runs(1)], False, ("crashed", 75, 0)),  # an exit code alone is no word: anything may exit with 41
    ([said(0, "peer_lost", 75, at=9.0), silent(1, at=10.0)], False, ("crashed", 75, 1)),  # whoever blames a peer was not the first
    ([said(0, "peer_lost", 75), runs(1)], False, ("peer_lost", 75, 0)),
    ([said(0, "peer_lost", 75), said(1, "done", 0)], False, ("crashed", 75, 1)),
    ([said(0, "bad_data", 41, at=10.0), silent(1, at=11.0)], False, ("bad_data", 41, 0)),
    ([said(0, "bad_data", 41, at=11.0), silent(1, at=10.0)], False, ("crashed", 75, 1)),
    ([said(0, "bad_config", 40, at=10.2), said(1, "diverged", 43, at=10.1)], False, ("diverged", 43, 1)),
    ([said(0, "stopped", 143), runs(1)], True, None),
    ([said(0, "stopped", 143), said(1, "stopped", 143)], False, ("stopped", 143, None)),
    ([said(0, "done", 0), said(1, "stopped", 143)], True, ("stopped", 143, None)),
    ([silent(0), runs(1)], True, None),  # the others may still be saving
    ([silent(0), said(1, "stopped", 143)], True, ("stopped", 143, None)),
    ([said(0, "incompatible_checkpoint", 42), said(1, "stopped", 143)], True, ("incompatible_checkpoint", 42, 0)),
    ([replace(silent(0), killed=True), said(1, "stopped", 143)], True, ("stopped", 143, None)),
    ([replace(silent(0), out_of_memory=True), runs(1)], False, ("out_of_memory", 75, 0)),
    ([replace(said(0, "crashed", 75), out_of_memory=True), runs(1)], False, ("out_of_memory", 75, 0)),  # its data loader was killed
]


@pytest.mark.parametrize(("states", "stop_requested", "expected"), TABLE)
def test_the_first_failed_rank_decides(states: list[RankState], stop_requested: bool, expected: tuple[str, int, int | None] | None) -> None:
    verdict = judge(states, stop_requested=stop_requested)
    assert (verdict and (verdict.kind, verdict.exit_code, verdict.first_failed_rank)) == expected
    turned = judge(states[::-1], stop_requested=stop_requested)  # the order in which ranks are looked at says nothing
    assert (turned and (turned.kind, turned.exit_code, turned.first_failed_rank)) == expected


def test_sigterm_never_ends_with_0_unless_every_rank_said_it_was_done() -> None:
    kinds: list[RankState] = [said(1, "done", 0), said(1, "stopped", 143), silent(1), said(1, "crashed", 75), said(1, "bad_data", 41)]
    codes = [judge([said(0, "done", 0), state], stop_requested=True).exit_code for state in kinds]
    assert codes == [0, 143, 143, 143, 41]
