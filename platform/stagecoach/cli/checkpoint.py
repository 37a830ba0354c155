"""`stagecoach checkpoint {list,verify,diff,export,gc}`: what a job saved. Needs no torch, but `export` does.

`export` is found by the entry-point group `stagecoach.checkpoint_commands`: it builds a model, which is for the training room to know.
"""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from stagecoach.cli import EntryPointGroup
from stagecoach.cli.options import Seconds
from stagecoach.cli.tables import Cell, print_json, print_table, visible
from stagecoach.errors import CheckpointError, ContractError, StagecoachError

if TYPE_CHECKING:
    from stagecoach.checkpoints import CheckpointRef, Collected, LeaseWatch, Verified
    from stagecoach.contract.ledger import JobFolder

GROUP = "stagecoach.checkpoint_commands"
STYLE = {"committed": "green", "torn": "yellow", "fenced": "yellow", "quarantined": "red", "newer format": "yellow", "damaged": "red"}

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")


class CheckpointGroup(EntryPointGroup):
    """Ends with 1 where a checkpoint is damaged: 40 to 49 are what jobs end with, and this waits for none."""

    entry_group = GROUP

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except CheckpointError as error:
            raise StagecoachError(str(error)) from error


@click.group("checkpoint", cls=CheckpointGroup)
def checkpoint_group() -> None:
    """Checkpoints: which there are, whether their bytes are right, how two differ. URI is a job's folder, or one checkpoint in it."""


@checkpoint_group.command("list")
@click.argument("uri")
@json_option
def list_command(uri: str, as_json: bool) -> None:
    """Lists every checkpoint of a job with its state and, where it may not be read, why."""
    from stagecoach.checkpoints.addresses import find
    from stagecoach.checkpoints.listing import list_checkpoints
    from stagecoach.explain.resolve import PERSON

    job, one = find(uri, settings=PERSON)
    rows = [_row(job, each.ref, each.state.value, each.reason) for each in list_checkpoints(job) if one in (None, each.ref)]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"{job.uri} has no checkpoints", err=True)
    else:
        cells = [
            (f"{row['step']}", f"{row['attempt']}", Cell(str(row["state"]), STYLE[str(row["state"])]), _size(row["bytes"]),
             "-" if row["ranks"] is None else f"{row['ranks']}", str(row["reason"]))
            for row in rows
        ]  # fmt: skip
        print_table(("step", "attempt", "state", "size", "ranks", "why"), cells, title=job.uri)


def _row(job: "JobFolder", ref: "CheckpointRef", state: str, reason: str) -> dict[str, object]:
    """One line of `list`. The manifest says how large it is, and whether this program can read it."""
    from stagecoach.checkpoints import NewerCheckpoint, State, read_manifest

    size, ranks = None, None
    if state == State.COMMITTED:
        try:
            manifest, _ = read_manifest(job, ref)
            size, ranks = sum(entry.size for entry in manifest.objects), manifest.world_size
        except NewerCheckpoint as error:
            state, reason = State.NEWER_FORMAT.value, str(error)
        except CheckpointError as error:
            state, reason = State.DAMAGED.value, str(error)
    return {"step": ref.step, "attempt": ref.attempt, "state": state, "bytes": size, "ranks": ranks, "reason": reason, "uri": ref.uri}


@checkpoint_group.command("verify")
@click.argument("uri")
@click.option("--quick", is_flag=True, help="Compare sizes and stored checksums only; read no data.")
@click.option("--quarantine", "mark", is_flag=True, help="Mark what is damaged, so that nobody loads it.")
@json_option
def verify_command(uri: str, quick: bool, mark: bool, as_json: bool) -> None:
    """Reads every byte of a checkpoint, or of all committed ones of a job, and names each object and block that is damaged.

    Ends with 1 when one is damaged, or when there is none that may be read.
    """
    from stagecoach.checkpoints import candidates, quarantine, why_none
    from stagecoach.checkpoints.addresses import find
    from stagecoach.explain.resolve import PERSON

    job, one = find(uri, settings=PERSON)
    refs = [one] if one else list(candidates(job))
    if not refs:
        raise StagecoachError(f"none may be read: {why_none(job)}")
    found = []
    for ref in refs:
        said = _verify(job, ref, quick=quick)
        found.append(said)
        if mark and said["damaged"]:
            quarantine(job, ref, str(said["says"]))
        if not as_json:
            mood = Cell("good", "green") if said["good"] else Cell("damaged", "red") if said["damaged"] else Cell("refused", "yellow")
            click.echo(visible(f"step {ref.step}, attempt {ref.attempt}: {mood.text}: {said['says']}"))
    if as_json:
        print_json(found)
    if not all(said["good"] for said in found):
        raise click.exceptions.Exit(1)


def _verify(job: "JobFolder", ref: "CheckpointRef", *, quick: bool) -> dict[str, object]:
    from stagecoach.checkpoints import BadCheckpoint, DamagedCheckpoint, verify

    said: dict[str, object] = {"step": ref.step, "attempt": ref.attempt, "uri": ref.uri, "good": False, "damaged": False, "problems": []}
    began = time.monotonic()
    try:
        verified = verify(job, ref, level="quick" if quick else "full")
    except CheckpointError as error:
        problems = error.problems if isinstance(error, BadCheckpoint) else ()
        listed = [{"object": each.object, "block": each.block, "tensors": list(each.tensors), "says": each.says} for each in problems]
        return said | {"says": str(error), "damaged": isinstance(error, DamagedCheckpoint), "problems": listed}
    return said | {"good": True, "says": _praise(verified, time.monotonic() - began), "manifest_digest": verified.digest}


def _praise(verified: "Verified", seconds: float) -> str:
    what = f"{len(verified.manifest.objects)} objects, {_size(verified.num_bytes)}"
    if verified.level == "full":
        return f"{what}, every byte read in {seconds:.1f} s"
    rest = f"; {verified.unproven} have no stored checksum, so only their size was compared" if verified.unproven else ""
    return f"{what}, sizes and stored checksums compared{rest}"


@checkpoint_group.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--part", type=click.Choice(["model", "optimizer"]), help="Compare only these tensors.")
@json_option
def diff_command(a: str, b: str, part: str | None, as_json: bool) -> None:
    """Lists the tensors that differ between A and B, however many ranks wrote each. Ends with 1 when any does.

    A job's folder stands for its newest checkpoint.
    """
    from stagecoach.checkpoints import verify
    from stagecoach.checkpoints.addresses import find_one
    from stagecoach.checkpoints.diff import Side, differences
    from stagecoach.explain.resolve import PERSON

    sides = []
    for address in (a, b):
        job, ref = find_one(address, settings=PERSON)
        sides.append(Side(job=job, ref=ref, manifest=verify(job, ref, level="sizes").manifest))
    found = list(differences(*sides, part=part))
    if as_json:
        plain = [{"part": each.part, "name": each.name, "says": each.says, "max_abs": _plain(each.max_abs)} for each in found]
        print_json({"a": sides[0].ref.uri, "b": sides[1].ref.uri, "differences": plain})
    elif found:
        rows = [(each.part, each.name, each.says, "-" if each.max_abs is None else f"{each.max_abs:.3g}") for each in found]
        print_table(("part", "tensor", "differs in", "by at most"), rows)
    else:
        click.echo(f"no tensor differs: {sides[0].ref.uri} and {sides[1].ref.uri}", err=True)
    if found:
        raise click.exceptions.Exit(1)


def _plain(number: float | None) -> float | str | None:
    """JSON knows no infinity."""
    return number if number is None or math.isfinite(number) else str(number)


@checkpoint_group.command("gc")
@click.argument("uri")
@click.option("--keep", type=click.IntRange(min=2), help="The newest so many good ones stay; default: what plan.json says.")
@click.option("--keep-every", type=click.IntRange(min=1), metavar="STEPS", help="And each of these steps; default: what plan.json says.")
@click.option("--wait", "wait_s", type=Seconds(min=0), metavar="S", help="How long a lease's counter must stand to be a killed reader's.")
@click.option("--dry-run", is_flag=True, help="Say what would go and why, and remove nothing.")
@json_option
def gc_command(uri: str, keep: int | None, keep_every: int | None, wait_s: float | None, dry_run: bool, as_json: bool) -> None:
    """Removes checkpoints that need not be kept, and what killed writers left.

    The newest two good ones, what stage.json names, what another run started from and what is being read always stay.
    """
    from stagecoach.checkpoints import LeaseWatch, collect
    from stagecoach.checkpoints.addresses import find
    from stagecoach.checkpoints.gc import STALE_UPLOAD_S
    from stagecoach.checkpoints.holds import DEAD_S
    from stagecoach.explain.resolve import PERSON

    job, one = find(uri, settings=PERSON)
    if one is not None:
        raise click.UsageError(f"gc works on a job's folder, not on one checkpoint: {job.uri}")
    plan = job.plan()
    if keep is None:
        if plan is None:
            raise click.UsageError(f"{job.uri} has no plan.json that says how many to keep; give --keep N")
        keep, keep_every = plan.checkpoint.keep, keep_every or plan.checkpoint.keep_every_steps
    watch = LeaseWatch(dead_s=DEAD_S if wait_s is None else wait_s)
    _watch_leases(job, watch, DEAD_S if wait_s is None else wait_s)
    done = collect(job, keep=keep, keep_every_steps=keep_every, watch=watch, dry_run=dry_run, stale_upload_s=STALE_UPLOAD_S)
    _print_collected(done, dry_run=dry_run, as_json=as_json)
    if done.refused:
        raise StagecoachError(f"gc stopped: {done.refused}")


def _watch_leases(job: "JobFolder", watch: "LeaseWatch", wait_s: float) -> None:
    """Whether a reader lives shows in its counter's moving, so a lease must be seen twice."""
    try:
        found = watch.held(job)
    except ContractError as error:
        raise StagecoachError(f"nothing is removed: {error}") from error
    if found:
        click.echo(f"{', '.join(sorted(found.values()))}: watching {wait_s:g} s whether a reader lives", err=True)
        time.sleep(wait_s)


def _print_collected(done: "Collected", *, dry_run: bool, as_json: bool) -> None:
    rows = list(_decisions(done))
    if as_json:
        plain = [
            {"step": step, "attempt": attempt, "state": state, "remove": remove, "why": why} for step, attempt, state, remove, why in rows
        ]
        removed = [ref.uri for ref in done.removed]
        print_json({"decisions": plain, "removed": removed, "bytes": done.num_bytes, "stale_uploads": done.stale_uploads})
        return
    verb = "would go" if dry_run else "goes"
    print_table(
        ("step", "attempt", "state", "", "why"),
        [(f"{step}", f"{attempt}", Cell(state, STYLE[state]), Cell(verb, "red") if remove else "stays", why)
         for step, attempt, state, remove, why in rows],
    )  # fmt: skip
    if not dry_run:
        also = f", and {done.stale_uploads} unfinished uploads" if done.stale_uploads else ""
        click.echo(f"removed {len(done.removed)} checkpoints, {_size(done.num_bytes)}{also}", err=True)


def _decisions(done: "Collected") -> Iterator[tuple[int, int, str, bool, str]]:
    for each in reversed(done.decisions):
        yield each.ref.step, each.ref.attempt, each.state.value, each.remove, each.why


def _size(num_bytes: object) -> str:
    if not isinstance(num_bytes, int):
        return "-"
    size, unit = float(num_bytes), 0
    while size >= 1024 and unit < 4:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}" if unit else f"{num_bytes} B"
