"""From files, locks and ledger to one state: every case."""

from pathlib import Path

import pytest

from stagecoach.constants import Phase
from stagecoach.errors import ContractError
from stagecoach.launch.local_phase import LedgerView, job_exit_code, job_state
from stagecoach.launch.local_state import JobDirectory, NodeFiles, NodeView

STARTING, RUNNING, DEAD, ABSENT = "starting", "running", "dead", "absent"
JOINED = LedgerView(newest=2, attempts=2, all_joined=True)


def views(*nodes: str | int) -> list[NodeView]:
    """A number is a node that ended with that code."""
    return [
        NodeView(index, "ended", node, f"reason {node}") if isinstance(node, int) else NodeView(index, node)  # type: ignore[arg-type]
        for index, node in enumerate(nodes)
    ]


@pytest.mark.parametrize(
    ("nodes", "ledger", "cancelled", "phase", "code", "told"),
    [
        (views(STARTING, STARTING), LedgerView(), False, Phase.STARTING, None, "no attempt claimed yet"),
        (views(RUNNING, ABSENT), LedgerView(), False, Phase.STARTING, None, "node 1 not started yet"),
        (views(RUNNING, RUNNING), LedgerView(newest=1, attempts=1), False, Phase.STARTING, None, "waits for its nodes to join"),
        (views(RUNNING, RUNNING), JOINED, False, Phase.RUNNING, None, ""),
        (views(RUNNING), LedgerView(newest=2, attempts=2, restarting=True), False, Phase.RESTARTING, None, "next one is about to start"),
        (views(RUNNING, 75), JOINED, False, Phase.STOPPING, None, "node 1 ended with 75: reason 75"),
        (views(DEAD, RUNNING), JOINED, False, Phase.STOPPING, None, "node 0 died without a word"),
        (views(RUNNING, RUNNING), JOINED, True, Phase.STOPPING, None, "cancelled"),
        (views(0, 0), JOINED, False, Phase.SUCCEEDED, 0, ""),
        (views(0, 0), JOINED, True, Phase.SUCCEEDED, 0, ""),
        (views(75, 42), JOINED, False, Phase.FAILED, 42, "node 1 ended with 42"),
        (views(0, 75), JOINED, False, Phase.FAILED, 75, "node 1 ended with 75"),
        (views(143, 75), JOINED, False, Phase.FAILED, 75, "node 1 ended with 75"),
        (views(143, 143), JOINED, False, Phase.FAILED, 143, "submit it again to go on"),
        (views(DEAD, 75), JOINED, False, Phase.FAILED, 75, "node 0 died without a word"),
        (views(143, 143), JOINED, True, Phase.CANCELLED, 143, "cancelled"),
        (views(DEAD, 143), JOINED, True, Phase.CANCELLED, 75, "cancelled"),
        (views(ABSENT, ABSENT), LedgerView(), True, Phase.CANCELLED, 143, "cancelled"),
        (views(ABSENT, ABSENT), LedgerView(), False, Phase.QUEUED, None, "nodes 0, 1 never started"),
        (views(75, ABSENT), LedgerView(), False, Phase.QUEUED, None, "submit again to complete"),
    ],
)
def test_the_phase_the_code_and_the_reason(
    nodes: list[NodeView], ledger: LedgerView, cancelled: bool, phase: Phase, code: int | None, told: str
) -> None:
    state = job_state(nodes, ledger, cancelled=cancelled)
    assert (state.phase, state.exit_code) == (phase, code)
    assert told in state.reason
    assert state.attempt == ledger.newest
    assert state.restarts == max(0, ledger.attempts - 1)


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((0, 143), 143), ((75, 143), 75), ((75, 40), 40), ((1, 0), 1), ((44, 42), 44), ((137, 143), 137)]
)
def test_the_gravest_code_is_the_jobs(codes: tuple[int, ...], code: int) -> None:
    assert job_exit_code(views(*codes)) == code


@pytest.mark.parametrize("name", ["../../another", "a/b", "", ".", ".."])
def test_a_name_out_of_a_bucket_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="is no name of a job"):
        JobDirectory.named(tmp_path, name)


@pytest.mark.parametrize("code", ['"abc"', "null", "[]", "1.5", "true"])
def test_an_exit_file_that_somebody_edited_counts_as_a_crash(code: str, tmp_path: Path) -> None:
    (tmp_path / "node-0.exit").write_text(f'{{"code": {code}, "reason": "edited"}}')
    assert NodeFiles(tmp_path / "node-0", 0).view() == NodeView(0, "ended", 75, "edited")
