"""From what a local job's files and its ledger show to one JobState. Pure, so that every case stands in a table of tests."""

from collections.abc import Sequence
from dataclasses import dataclass

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState
from stagecoach.launch.local_state import NodeView


@dataclass(frozen=True, kw_only=True)
class LedgerView:
    """What the bucket says of this submission. attempts: how many it has claimed; all_joined: every node stands in the newest one."""

    newest: int | None = None
    attempts: int = 0
    all_joined: bool = False
    restarting: bool = False  # the newest attempt has ended and the same supervisor goes on with the next


def job_state(nodes: Sequence[NodeView], ledger: LedgerView, *, cancelled: bool) -> JobState:
    """The phase, its reason in words, and the exit code once no node is alive."""
    phase, reason, code = _phase(nodes, ledger, cancelled=cancelled)
    return JobState(phase=phase, reason=reason, attempt=ledger.newest, restarts=max(0, ledger.attempts - 1), exit_code=code)


def _phase(nodes: Sequence[NodeView], ledger: LedgerView, *, cancelled: bool) -> tuple[Phase, str, int | None]:
    absent = [node for node in nodes if node.condition == "absent"]
    gone = [node for node in nodes if node.condition in ("ended", "dead")]
    if any(node.is_alive for node in nodes):
        if cancelled:
            return Phase.STOPPING, "cancelled; its processes are still ending", None
        if gone:
            return Phase.STOPPING, f"{_told(gone)}; the others are ending", None
        return _alive_phase(absent, ledger)
    if cancelled and not _all_done(nodes):
        return Phase.CANCELLED, "cancelled", job_exit_code(nodes) if gone else int(ExitCode.STOPPED)
    if absent:
        return Phase.QUEUED, f"{_named(absent)} never started: the launcher died while submitting; submit again to complete the job", None
    code = job_exit_code(nodes)
    if code == ExitCode.DONE:
        return Phase.SUCCEEDED, "", code
    reason = _told([node for node in nodes if _code(node) == code])
    if code == ExitCode.STOPPED:  # nothing on this machine starts it again, so it is over, though nothing is wrong with it
        reason += "; somebody other than `cancel` asked it to stop: submit it again to go on"
    return Phase.FAILED, reason, code


def _alive_phase(absent: Sequence[NodeView], ledger: LedgerView) -> tuple[Phase, str, int | None]:
    if absent:
        return Phase.STARTING, f"{_named(absent)} not started yet", None
    if ledger.restarting:
        return Phase.RESTARTING, f"attempt {ledger.newest} ended; the next one is about to start in place", None
    if ledger.newest is None:
        return Phase.STARTING, "no attempt claimed yet", None
    if not ledger.all_joined:
        return Phase.STARTING, f"attempt {ledger.newest} waits for its nodes to join", None
    return Phase.RUNNING, "", None


def job_exit_code(nodes: Sequence[NodeView]) -> int:
    """The job's code from its nodes': a fatal one (40-49) wins, then any crash, then a stop, then done. A node found dead counts as 75."""
    codes = [_code(node) for node in nodes if node.condition != "absent"]
    fatal = [code for code in codes if 40 <= code <= 49]
    crashed = [code for code in codes if code not in (ExitCode.DONE, ExitCode.STOPPED)]
    return (fatal or crashed or [code for code in codes if code == ExitCode.STOPPED] or [int(ExitCode.DONE)])[0]


def _code(node: NodeView) -> int:
    if node.condition == "dead" or node.exit_code is None:
        return int(ExitCode.RETRY)
    return node.exit_code


def _all_done(nodes: Sequence[NodeView]) -> bool:
    return all(node.condition == "ended" and node.exit_code == ExitCode.DONE for node in nodes)


def _told(nodes: Sequence[NodeView]) -> str:
    """What each of these nodes left behind."""
    return "; ".join(
        f"the supervisor of node {node.index} died without a word (killed, or the machine went down)"
        if node.condition == "dead"
        else f"node {node.index} ended with {node.exit_code}" + (f": {node.reason}" if node.reason else "")
        for node in nodes
    )


def _named(nodes: Sequence[NodeView]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(str(node.index) for node in nodes)}"
