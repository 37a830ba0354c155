"""Which machine an attempt's end is put down to: one that is innocent must not be left out of the next submission."""

import asyncio
import json
from collections.abc import Iterable

import pytest

from stagecoach.contract.attempts import bad_machines
from stagecoach.contract.records import to_plain
from stagecoach.supervisor import rendezvous
from stagecoach.supervisor.http import Request
from stagecoach.supervisor.outcome import Verdict, not_started
from stagecoach.supervisor.rendezvous import Leader
from stagecoach.testing.builders import attempt_end, attempt_start

LOST = not_started("peer_lost", "rank 0: connection closed by peer", is_weak=True)
CRASHED = not_started("crashed", "rank 1 raised ValueError")
DONE = Verdict(kind="done", exit_code=0)


class Attempt:
    """The leader of an attempt of three nodes, on m0; the others are on m1 and m2, and have joined."""

    def __init__(self) -> None:
        start = attempt_start(nonce="mine", nodes=3, ranks_per_node=1, world_size=3)
        self.leader = Leader(start, host="here", machine="m0", deadline_s=60)

    def hear(self, node: int, verdict: Verdict | None = None) -> None:
        said = {"nonce": "mine", "node": node, "machine": f"m{node}", "verdict": to_plain(verdict) if verdict else None}
        assert self.leader.handle(Request("POST", "/rendezvous", json.dumps(said).encode())).status == 200

    async def conclude(
        self, own: Verdict, *, alive: Iterable[int] = (), reports: dict[int, Verdict] | None = None
    ) -> tuple[Verdict, int | None]:
        """Once the leader's ranks have ended with `own`: nodes in `alive` are still heard of, those in `reports` tell their end."""
        self.hear(1)
        self.hear(2)
        await self.leader.gather(asyncio.Event())
        ending = asyncio.create_task(self.leader.conclude(own, limit_s=0.0))
        await asyncio.sleep(0)  # it holds its end from now on
        for node in alive:
            self.hear(node)
        for node, verdict in (reports or {}).items():
            self.hear(node, verdict)
        return await ending


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(rendezvous, "PEER_HOLD_S", 0.05)
    monkeypatch.setattr(rendezvous, "REPORT_S", 0.01)
    return Attempt()


def test_the_node_that_is_heard_of_no_more_is_the_one_that_was_lost(attempt: Attempt) -> None:
    whole, where = asyncio.run(attempt.conclude(LOST, reports={1: LOST}))
    assert where == 2
    assert whole.message == "node 2 (m2) was not heard of any more; rank 0: connection closed by peer"
    assert (whole.kind, whole.exit_code) == ("peer_lost", 75)


@pytest.mark.parametrize(
    ("alive", "reports"),
    [((1, 2), {}), ((), {1: LOST, 2: LOST}), ((), {})],
    ids=["all are heard of", "each blames another", "two are silent"],
)
def test_where_nobody_knows_no_machine_is_named(attempt: Attempt, alive: tuple[int, ...], reports: dict[int, Verdict]) -> None:
    whole, where = asyncio.run(attempt.conclude(LOST, alive=alive, reports=reports))
    assert (whole.message, where) == (LOST.message, None)


def test_a_cause_is_named_with_its_node_whoever_is_silent(attempt: Attempt) -> None:
    assert asyncio.run(attempt.conclude(LOST, reports={1: CRASHED})) == (CRASHED, 1)


def test_a_failure_of_its_own_is_the_leaders(attempt: Attempt) -> None:
    assert asyncio.run(attempt.conclude(CRASHED, alive=(1,))) == (CRASHED, 0)


def test_done_needs_no_machine_and_everybodys_word(attempt: Attempt) -> None:
    whole, _ = asyncio.run(attempt.conclude(DONE, reports={1: DONE, 2: DONE}))
    assert whole == DONE


def test_who_waits_in_vain_for_others_is_not_to_blame(attempt: Attempt) -> None:
    failed = not_started("rendezvous_failed", "node 2 of 3 did not join")
    assert asyncio.run(attempt.leader.conclude(failed, limit_s=0.0)) == (failed, None)
    assert asyncio.run(attempt.leader.conclude(CRASHED, limit_s=0.0)) == (CRASHED, 0)


def test_ends_without_a_machine_make_none_suspect() -> None:
    ends = [attempt_end(attempt=number, exit_code=75, first_failed_node=None) for number in (3, 2, 1)]
    assert bad_machines(ends) == ()
