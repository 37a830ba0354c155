"""Rows of `stagecoach runs` and `stagecoach status`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagecoach.cli.tables import Cell, Row
from stagecoach.contract.ledger import Runs
from stagecoach.errors import ConfigError, ContractError
from stagecoach.explain.records import Cause, Explanation, Facts
from stagecoach.explain.resolve import Target, find
from stagecoach.explain.sentence import duration
from stagecoach.explain.verdict import explain
from stagecoach.storage import ObjectCorrupt

GOOD = {Cause.FINISHED, Cause.RUNNING, Cause.STAGE_FINISHED, Cause.TRAINED}
BAD = {
    Cause.CRASHED, Cause.HUNG, Cause.OUT_OF_MEMORY, Cause.PEER_LOST, Cause.STORE_GONE, Cause.RENDEZVOUS_FAILED, Cause.FOUND_DEAD,
    Cause.BAD_CONFIG, Cause.BAD_DATA, Cause.INCOMPATIBLE_CHECKPOINT, Cause.DIVERGED, Cause.NO_PROGRESS, Cause.SUPERVISOR_GONE,
    Cause.OUT_OF_TIME,
    Cause.SILENT, Cause.NEWER_FORMAT, Cause.UNREADABLE, Cause.ENDED_BEFORE_START, Cause.STOPPED_UNSAVED,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run or job in the list."""

    name: str
    kind: str  # the recipe of a run, the kind of a job
    is_run: bool
    created_at: str
    said: Explanation

    def row(self) -> Row:
        said = self.said
        return (
            self.name, self.kind, said.stage or "-", state_cell(said), number(said.step), number(said.attempts), self.created_at,
        )  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """Of `runs --json`."""
        said = self.said
        return {
            "name": self.name, "kind": "run" if self.is_run else "job", "recipe_or_kind": self.kind, "created_at": self.created_at,
            "stage": said.stage, "cause": said.cause, "next": said.next, "step": said.step, "attempts": said.attempts,
            "sentence": said.sentence,
        }  # fmt: skip


def list_all(runs: Runs, gather: Callable[[Target], Facts]) -> list[Entry]:
    """Runs, then other jobs, each by name. A damaged one is listed as what it is."""
    return [_entry(runs, name, gather, is_run=True) for name in runs.ids()] + [
        _entry(runs, name, gather, is_run=False) for name in runs.job_names()
    ]


def _entry(runs: Runs, name: str, gather: Callable[[Target], Facts], *, is_run: bool) -> Entry:
    kind, created_at = "?", ""
    try:
        target = find(f"{runs.store.uri}/{'runs' if is_run else 'jobs'}/{name}", root=runs.store.uri)
    except ConfigError:  # a folder of that name that holds nothing of ours
        return Entry(name=name, kind=kind, is_run=is_run, created_at="", said=_nothing(name))
    try:
        if target.run is not None:
            kind, created_at = target.run.recipe, target.run.created_at
        elif not is_run and (job := runs.job(name).job()) is not None:
            kind, created_at = job.kind, job.created_at
    except (ContractError, ObjectCorrupt):
        pass  # its row says that it cannot be read
    return Entry(name=name, kind=kind, is_run=is_run, created_at=created_at, said=explain(gather(target)))


def _nothing(name: str) -> Explanation:
    from stagecoach.explain.records import Next

    return Explanation(run=name, cause=Cause.NO_STAGES, next=Next.NOTHING, sentence=f"{name}: holds no run.json.")


def status_row(said: Explanation) -> Row:
    """One stage in the table of `status`."""
    return (
        said.stage or said.run, state_cell(said), number(said.attempt), number(said.step), number(said.steps), number(said.committed_step),
        number(said.steps_lost_total), duration(said.eta_s) if said.eta_s is not None else "-", said.phase or "-",
    )  # fmt: skip


def state_cell(said: Explanation) -> Cell:
    return Cell(said.cause.replace("_", " "), "green" if said.cause in GOOD else "red" if said.cause in BAD else "yellow")


def number(value: int | None) -> str:
    return "-" if value is None else str(value)
