"""Are the bytes of a checkpoint those that were committed? "quick" compares sizes and stored checksums, "full" reads every byte."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from loguru import logger

from stagecoach.checkpoints.listing import CheckpointRef, State, candidates, list_checkpoints, quarantine
from stagecoach.checkpoints.manifest import DamagedCheckpoint, read_manifest
from stagecoach.contract.checkpoint import BLOCK_BYTES, CheckpointManifest, ObjectDigests, RankDigests
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode, encode
from stagecoach.errors import CheckpointError, ContractError
from stagecoach.storage import NotFound, ObjectChanged, ObjectCorrupt, ObjectInfo, OutOfRange
from stagecoach.storage import digest as xxh3

Level = Literal["sizes", "quick", "full"]
T = TypeVar("T")

MAX_BAD = 5  # damaged checkpoints in a row
THREADS = 4
BLOCKS_AT_ONCE = 4  # 32 MiB a thread
SHOWN_TENSORS = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one object."""

    object: str
    says: str
    block: int | None = None  # of 8 MiB, from 0
    tensors: tuple[str, ...] = ()  # which have bytes there


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A checkpoint whose bytes are right, as far as `level` looks."""

    ref: CheckpointRef
    manifest: CheckpointManifest
    digest: str  # SHA-256 of the manifest
    level: Level
    num_bytes: int  # of all its objects
    unproven: int = 0  # "quick": objects without a stored checksum, of which only the size was compared


class BadCheckpoint(DamagedCheckpoint):
    """Carries every object that is wrong."""

    def __init__(self, ref: CheckpointRef, problems: tuple[Problem, ...]) -> None:
        more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
        super().__init__(f"{ref.uri} is damaged: {'; '.join(problem.says for problem in problems[:10])}{more}")
        self.problems = problems


def verify(job: JobFolder, ref: CheckpointRef, *, level: Level = "full", identity: str | None = None) -> Verified:
    """Proves one checkpoint. "sizes" takes one listing, "quick" looks at every object, "full" reads every block.

    Raises BadCheckpoint with all that is wrong, or what `read_manifest` raises.
    """
    manifest, digest = read_manifest(job, ref, identity=identity)
    there = {info.key.removeprefix(f"{ref.key}/"): info for info in job.store.list(ref.key)}
    problems = [problem for entry in manifest.objects if (problem := _wrong_size(entry, there.get(entry.name)))]
    whole = [entry for entry in manifest.objects if all(problem.object != entry.name for problem in problems)]
    unproven = 0
    if level == "quick":
        checked = _in_parallel(lambda entry: _wrong_checksum(job, ref, entry, there[entry.name]), whole)
        problems += [found for found in checked if isinstance(found, Problem)]
        unproven = sum(found is False for found in checked)
    elif level == "full":
        for found in _in_parallel(lambda entry: list(wrong_blocks(job, ref, manifest, entry)), whole):
            problems += found
        problems += _wrong_rank_digests(job, ref, manifest)
    if problems:
        raise BadCheckpoint(ref, tuple(problems))
    size = sum(entry.size for entry in manifest.objects)
    return Verified(ref=ref, manifest=manifest, digest=digest, level=level, num_bytes=size, unproven=unproven)


def wrong_blocks(job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest, entry: ObjectDigests) -> Iterator[Problem]:
    """Reads one object and yields each 8 MiB block whose bytes are others than were committed."""
    ranges = [(start, min(BLOCK_BYTES, entry.size - start)) for start in range(0, entry.size, BLOCK_BYTES)]
    for first in range(0, len(ranges), BLOCKS_AT_ONCE):
        try:
            bodies = job.store.read_ranges(f"{ref.key}/{entry.name}", ranges[first : first + BLOCKS_AT_ONCE])
        except (NotFound, OutOfRange, ObjectChanged, ObjectCorrupt) as error:
            yield Problem(object=entry.name, says=f"{entry.name}: {error}", block=first)
            return
        for block, body in enumerate(bodies, start=first):
            if xxh3.of(body) != entry.blocks[block]:
                yield _wrong_block(manifest, entry, block)


def tensors_in(manifest: CheckpointManifest, name: str, start: int, stop: int) -> tuple[str, ...]:
    """The tensors that have bytes among [start, stop) of an object."""
    return tuple(
        tensor.name
        for tensor in manifest.tensors
        if any(piece.object == name and piece.start < stop and start < piece.start + piece.size for piece in tensor.boxes())
    )


def _wrong_block(manifest: CheckpointManifest, entry: ObjectDigests, block: int) -> Problem:
    start, stop = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, entry.size)
    tensors = tensors_in(manifest, entry.name, start, stop)
    more = f" and {len(tensors) - SHOWN_TENSORS} more" if len(tensors) > SHOWN_TENSORS else ""
    holds = f", where {', '.join(tensors[:SHOWN_TENSORS])}{more} lie" if tensors else ""
    says = f"{entry.name}: block {block} (bytes {start} to {stop}{holds}) has other bytes than were committed"
    return Problem(object=entry.name, says=says, block=block, tensors=tensors)


def _wrong_size(entry: ObjectDigests, info: ObjectInfo | None) -> Problem | None:
    if info is None:
        return Problem(object=entry.name, says=f"{entry.name} is missing")
    if info.size == entry.size:
        return None
    how = "it was cut off" if info.size < entry.size else "something was added or it was replaced"
    return Problem(object=entry.name, says=f"{entry.name} has {info.size} bytes, {entry.size} were committed: {how}")


def _wrong_checksum(job: JobFolder, ref: CheckpointRef, entry: ObjectDigests, info: ObjectInfo) -> Problem | bool:
    """The problem; or whether the stored checksum proves the object (False: there is none to compare)."""
    expected = entry.checksum or (entry.blocks[0] if len(entry.blocks) == 1 else None)
    try:
        stored = info.checksum or job.store.stat(f"{ref.key}/{entry.name}").checksum
    except NotFound:
        return Problem(object=entry.name, says=f"{entry.name} is missing")
    if expected is None or stored is None:
        return False
    if stored == expected:
        return True
    return Problem(object=entry.name, says=f"{entry.name} was stored with XXH3-128 {stored}, but {expected} was committed: it was replaced")


def _wrong_rank_digests(job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest) -> list[Problem]:
    """`digests-{r}.json` where the manifest does not list them as objects: they must say what the manifest says."""
    listed = {entry.name for entry in manifest.objects}
    names = [(rank, f"digests-{rank:05d}.json") for rank in range(manifest.world_size)]
    return [
        Problem(object=name, says=f"{name}: {says}")
        for rank, name in names
        if name not in listed and (says := _wrong_rank(job, ref, manifest, rank, name))
    ]


def _wrong_rank(job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest, rank: int, name: str) -> str:
    try:
        body = job.store.read(f"{ref.key}/{name}")
        said = decode(RankDigests, body, uri=f"{ref.uri}/{name}")
    except NotFound:
        return "it is missing"
    except (ContractError, ObjectCorrupt) as error:
        return str(error)
    if (said.rank, said.step, said.attempt) != (rank, manifest.step, manifest.attempt):
        return f"it is of rank {said.rank}, step {said.step}, attempt {said.attempt}: it was copied here from elsewhere"
    if encode(said) != body:
        return "it was edited"
    other = sorted({entry.name for entry in said.objects} - {entry.name for entry in manifest.objects if entry in said.objects})
    if other:
        return f"it says of {', '.join(other)} what the manifest does not"
    pieces = {(tensor.part, tensor.name, piece) for tensor in manifest.tensors for piece in tensor.boxes()}
    alien = [tensor.name for tensor in said.tensors for piece in tensor.boxes() if (tensor.part, tensor.name, piece) not in pieces]
    return f"it says of {alien[0]} what the manifest does not" if alien else ""


# --- which one to read


def newest_good(job: JobFolder, *, level: Level = "full", identity: str | None = None, max_bad: int = MAX_BAD) -> Verified | None:
    """The newest checkpoint that proves right; bad ones are quarantined on the way, loudly. None when none was ever committed.

    Raises CheckpointError when every committed one is bad, or `max_bad` in a row were: then more than a checkpoint is wrong.
    """
    num_bad = 0
    for ref in candidates(job):
        try:
            return verify(job, ref, level=level, identity=identity)
        except DamagedCheckpoint as damage:
            logger.error("{}; it is quarantined and the one before it is taken", damage)
            quarantine(job, ref, str(damage))
            num_bad += 1
        if num_bad == max_bad:
            raise CheckpointError(f"{job.uri}: the newest {num_bad} checkpoints are damaged. {why_none(job)}")
    if num_bad or any(found.state == State.QUARANTINED for found in list_checkpoints(job)):
        raise CheckpointError(why_none(job))
    return None


def why_none(job: JobFolder) -> str:
    """A sentence for whoever found no checkpoint to read: each that is there, and why not."""
    found = list(list_checkpoints(job))
    if not found:
        return f"{job.uri} has no checkpoints"
    each = [f"step {each.ref.step}, attempt {each.ref.attempt}: {each.state}{f' ({each.reason})' if each.reason else ''}" for each in found]
    more = f"; and {len(each) - 10} more" if len(each) > 10 else ""
    return f"{job.uri} has {len(found)} checkpoints: {'; '.join(each[:10])}{more}"


def _in_parallel(job: Callable[[ObjectDigests], T], entries: Sequence[ObjectDigests]) -> list[T]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        return list(pool.map(job, entries))
