"""Which checkpoints can go, and removing them so that a kill at any line leaves nothing half-deleted on offer (reliability.md section 1).

Counted are only those that prove right. The newest two of them always stay, as does what `stage.json`, a pin or a lease names. First
COMMITTED goes, so that nobody is offered it, then MANIFEST.json, then data. What was never committed goes once its writer is done with it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from loguru import logger

from stagecoach.checkpoints.holds import Holds, LeaseWatch, is_there
from stagecoach.checkpoints.listing import COMMITTED, FOLDER, MANIFEST, QUARANTINED, Checkpoint, CheckpointRef, State, list_checkpoints
from stagecoach.checkpoints.manifest import DamagedCheckpoint, ForeignCheckpoint, NewerCheckpoint
from stagecoach.checkpoints.verify import verify
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError, ContractError
from stagecoach.storage import ObjectCorrupt

ALWAYS_KEPT = 2
STALE_UPLOAD_S = 86_400.0  # longer than any upload takes
THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Decision:
    """About one checkpoint."""

    ref: CheckpointRef
    state: State
    remove: bool
    why: str


@dataclass(kw_only=True)
class Collected:
    """What a run of gc did."""

    decisions: list[Decision] = field(default_factory=list)
    removed: list[CheckpointRef] = field(default_factory=list)
    num_bytes: int = 0  # freed
    stale_uploads: int = 0  # unfinished uploads and temporary files
    refused: str = ""  # why it stopped


def collect(
    job: JobFolder,
    *,
    keep: int,
    keep_every_steps: int | None = None,
    watch: LeaseWatch | None = None,
    dry_run: bool = False,
    stale_upload_s: float | None = None,
) -> Collected:
    """Removes what need not be kept: all but the newest `keep` good ones (two at least) and every `keep_every_steps`-th step.

    Give the same `watch` each time: leases of killed readers are told by their counters standing still between calls. With
    `stale_upload_s`, what killed writers left is removed too. Where a lease, a pin or `stage.json` cannot be read, nothing is removed.
    """
    holds, done = Holds(job, watch or LeaseWatch()), Collected()
    try:
        done.decisions, good = decide(job, holds.why_held(), keep=keep, keep_every_steps=keep_every_steps)
        for decision in done.decisions:
            if decision.remove and not dry_run:
                _check_two_stand(job, good)
                _remove(job, decision.ref, holds, done)
    except (ContractError, ObjectCorrupt, CheckpointError) as error:
        logger.warning("{}: no more checkpoints are removed: {}", job.uri, error)
        done.refused = str(error)
    if stale_upload_s is not None and not dry_run:
        done.stale_uploads = job.store.sweep(FOLDER, older_than_s=stale_upload_s)
    return done


def decide(
    job: JobFolder, why_held: Callable[[CheckpointRef], str], *, keep: int, keep_every_steps: int | None
) -> tuple[list[Decision], list[CheckpointRef]]:
    """What to do with each checkpoint, oldest first, and the newest good ones. Nothing is removed."""
    keep = max(keep, ALWAYS_KEPT)
    found = list(list_checkpoints(job))
    good, bad = _newest_good(job, found, keep)
    window = Window(
        keep=keep,
        keep_every_steps=keep_every_steps,
        good=good,
        bad=bad,
        newest_attempt=max(job.attempt_numbers(), default=0),
        last_commit={each.ref.attempt: each.ref.step for each in reversed(found) if each.state == State.COMMITTED},
    )
    decisions = []
    for each in reversed(found):
        held = why_held(each.ref)
        remove, why = (False, held) if held else window.judge(each)
        decisions.append(Decision(ref=each.ref, state=each.state, remove=remove, why=why))
    return decisions, good


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is kept for being new."""

    keep: int
    keep_every_steps: int | None
    good: list[CheckpointRef]  # newest first, at most `keep`
    bad: dict[CheckpointRef, str]  # committed ones that do not count, and why
    newest_attempt: int
    last_commit: dict[int, int]  # attempt -> the newest step it committed

    def judge(self, found: Checkpoint) -> tuple[bool, str]:
        """(remove it?, why)."""
        ref = found.ref
        if found.state == State.FENCED:
            return True, found.reason
        if found.state == State.TORN:
            return self._judge_torn(ref)
        if found.state == State.COMMITTED and ref in self.good:
            return False, f"one of the newest {self.keep}"
        if found.state == State.COMMITTED and self.keep_every_steps and ref.step % self.keep_every_steps == 0:
            return False, f"every {self.keep_every_steps} steps one is kept"
        if len(self.good) < self.keep or (ref.step, ref.attempt) > (self.good[-1].step, self.good[-1].attempt):
            return False, f"{self.bad.get(ref, found.reason)}: kept until {self.keep} good ones are newer"
        return True, f"{self.keep} good ones are newer"

    def _judge_torn(self, ref: CheckpointRef) -> tuple[bool, str]:
        if ref.attempt < self.newest_attempt:
            return True, f"never committed, and attempt {self.newest_attempt} has begun since"
        if ref.step < self.last_commit.get(ref.attempt, 0):  # an attempt saves one step after the other
            return True, f"never committed, and its attempt has committed step {self.last_commit[ref.attempt]} since"
        return False, "not committed: it may be being written"


def _newest_good(job: JobFolder, found: list[Checkpoint], keep: int) -> tuple[list[CheckpointRef], dict[CheckpointRef, str]]:
    """The newest `keep` that prove right (manifest, and the size of every object), and the committed ones on the way that do not."""
    good: list[CheckpointRef] = []
    bad: dict[CheckpointRef, str] = {}
    for each in found:
        if each.state != State.COMMITTED:
            continue
        try:
            verify(job, each.ref, level="sizes")
            good.append(each.ref)
        except (DamagedCheckpoint, ForeignCheckpoint, NewerCheckpoint) as error:
            bad[each.ref] = str(error)
        if len(good) == keep:
            break
    return good, bad


def _check_two_stand(job: JobFolder, good: list[CheckpointRef]) -> None:
    """What was good when we looked may have been found bad since: then the old ones are needed after all."""
    for ref in good[:ALWAYS_KEPT]:
        if not is_there(job, ref):
            raise CheckpointError(f"{ref.uri} was removed or quarantined meanwhile; run gc again")


def _remove(job: JobFolder, ref: CheckpointRef, holds: Holds, done: Collected) -> None:
    job.store.delete(f"{ref.key}/{COMMITTED}")
    if held := holds.why_held()(ref):  # somebody came between the decision and the line above; they see that it is gone, or finish
        logger.info("{}: its data stays for now: {}", ref.uri, held)
        return
    job.store.delete(f"{ref.key}/{MANIFEST}")
    rest = [info for info in job.store.list(ref.key) if info.key != f"{ref.key}/{QUARANTINED}"]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gc") as pool:
        list(pool.map(job.store.delete, [info.key for info in rest]))
    job.store.delete(f"{ref.key}/{QUARANTINED}")
    done.removed.append(ref)
    done.num_bytes += sum(info.size for info in rest)
