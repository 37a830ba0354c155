"""From the ranks' objects to one committed checkpoint (reliability.md section 1, steps 3 to 5), and how the other ranks hear of it."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod

from stagecoach.checkpoints.listing import COMMITTED, MANIFEST, CheckpointRef
from stagecoach.checkpoints.manifest import overlap
from stagecoach.checkpoints.packing import joined, packed
from stagecoach.contract.checkpoint import CheckpointManifest, ObjectDigests, Piece, RankDigests, TensorEntry
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode, encode
from stagecoach.storage import NotFound, digest
from stagecoach_workloads.checkpoints.errors import Fenced, SaveFailed
from stagecoach_workloads.checkpoints.messages import SaverJob

MAX_POLL_S = 2.0
LOOKS_AT_ONCE = 16
SKIPPED = "SKIPPED-"

Enter = Callable[[str, int], None]


class SkippedByRank(Exception):
    """A rank's part does not come: there will be no checkpoint of this step. Training goes on, where that rank can."""


def digests_name(rank: int) -> str:
    return f"digests-{rank:05d}.json"


def skipped_name(rank: int) -> str:
    return f"{SKIPPED}{rank:05d}"


def say_that_it_is_skipped(folder: JobFolder, ref: CheckpointRef, rank: int, why: str) -> None:
    """Rank 0 looks for everybody's word, the others for rank 0's: nobody waits for what does not come. Raises StorageError.

    Nothing is said where this rank's part is complete, or the whole was committed just before its process died.
    """
    done = COMMITTED if rank == 0 else digests_name(rank)
    if not folder.store.exists(f"{ref.key}/{done}"):
        folder.store.publish(f"{ref.key}/{skipped_name(rank)}", why.encode())


class Commit:
    """What rank 0 does once its own objects are written."""

    def __init__(self, job: SaverJob, folder: JobFolder, ref: CheckpointRef, enter: Enter) -> None:
        self._job, self._folder, self._ref, self._enter = job, folder, ref, enter
        self._digests_objects: dict[int, ObjectDigests] = {}  # by rank: proven like all other objects
        self._merger = Merger()

    def run(self) -> None:
        """Raises Fenced, SkippedByRank, SaveFailed, StorageError; then nothing was committed."""
        objects = self._gather()
        self._enter("manifest", self._ref.step)
        manifest = self._manifest(objects)
        body = encode(manifest, indent=None)
        self._folder.store.publish(f"{self._ref.key}/{MANIFEST}", body)
        self._look_at_all(manifest, body)
        self._enter("commit", self._ref.step)
        refuse_when_fenced(self._job, self._folder)
        proof = hashlib.sha256(body).hexdigest().encode()
        if not self._folder.store.create_if_absent(f"{self._ref.key}/{COMMITTED}", proof):
            raise SaveFailed(f"{self._ref.uri} was committed by somebody else; two processes act as attempt {self._job.attempt}")

    def _gather(self) -> list[ObjectDigests]:
        """Every rank's objects, as soon as its digests stand in the bucket; its tensors go into the merger."""
        found: dict[int, tuple[ObjectDigests, ...]] = {}
        for _ in looks(self._job, self._folder, self._ref, lambda: _missing(self._job, found)):
            names = {info.key.rpartition("/")[2] for info in self._folder.store.list(self._ref.key)}
            self._raise_when_skipped(names)
            new = [rank for rank in range(self._job.world_size) if rank not in found and digests_name(rank) in names]
            with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
                for digests in pool.map(self._read_digests, new):
                    self._merger.add(digests.tensors)
                    found[digests.rank] = digests.objects
            if len(found) == self._job.world_size:
                break
        return [item for rank in sorted(found) for item in found[rank]]

    def _raise_when_skipped(self, names: Collection[str]) -> None:
        for name in sorted(names):
            if name.startswith(SKIPPED):
                raise SkippedByRank(_word(self._folder, self._ref, name))

    def _read_digests(self, rank: int) -> RankDigests:
        key = f"{self._ref.key}/{digests_name(rank)}"
        body = self._folder.store.read(key)
        digests = decode(RankDigests, body, uri=self._folder.store.uri_of(key))
        if (digests.rank, digests.step, digests.attempt) != (rank, self._ref.step, self._ref.attempt):
            raise SaveFailed(f"{self._folder.store.uri_of(key)} says it is of rank {digests.rank}, step {digests.step}")
        proof = digest.ObjectDigest()
        proof.update(body)
        self._digests_objects[rank] = ObjectDigests(name=digests_name(rank), size=len(body), blocks=proof.blocks, checksum=proof.hex())
        return digests

    def _manifest(self, objects: Sequence[ObjectDigests]) -> CheckpointManifest:
        job = self._job
        return CheckpointManifest(
            job_uri=self._folder.uri,
            step=self._ref.step,
            attempt=self._ref.attempt,
            identity=job.identity,
            world_size=job.world_size,
            mesh=job.mesh,
            fingerprints=job.fingerprints,
            versions=job.versions,
            objects=(*objects, *(self._digests_objects[rank] for rank in range(job.world_size))),
            tensors=self._merger.merged(),
        )

    def _look_at_all(self, manifest: CheckpointManifest, body: bytes) -> None:
        """Reads back the size and the stored checksum of every object, and the manifest itself."""
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            list(pool.map(self._look_at, manifest.objects))
        if self._folder.store.read(f"{self._ref.key}/{MANIFEST}") != body:
            raise SaveFailed(f"{self._ref.uri}/{MANIFEST} does not read back as it was written")

    def _look_at(self, item: ObjectDigests) -> None:
        key = f"{self._ref.key}/{item.name}"
        try:
            info = self._folder.store.stat(key)
        except NotFound as error:
            raise SaveFailed(f"{self._folder.store.uri_of(key)} was written and is not there") from error
        is_other = None not in (info.checksum, item.checksum) and info.checksum != item.checksum
        if info.size != item.size or is_other:
            raise SaveFailed(f"{self._folder.store.uri_of(key)} has {info.size} bytes, checksum {info.checksum}; written were {item.size}"
                             f", {item.checksum}")  # fmt: skip


def follow(job: SaverJob, folder: JobFolder, ref: CheckpointRef) -> None:
    """What every other rank does: waits until rank 0 has committed."""
    for _ in looks(job, folder, ref, lambda: "rank 0 has not committed"):
        if folder.store.exists(f"{ref.key}/{COMMITTED}"):
            return
        if folder.store.exists(f"{ref.key}/{skipped_name(0)}"):  # the others' are rank 0's to see; then it writes one too
            raise SkippedByRank(_word(folder, ref, skipped_name(0)))


def _word(folder: JobFolder, ref: CheckpointRef, name: str) -> str:
    """Why a rank skipped."""
    return folder.store.read(f"{ref.key}/{name}").decode("utf-8", "replace")


def looks(job: SaverJob, folder: JobFolder, ref: CheckpointRef, waiting_for: Callable[[], str]) -> Iterable[float]:
    """Yields before each look at the bucket, ever rarer; raises Fenced, or SaveFailed once the deadline has passed."""
    began, pause, checked = time.monotonic(), job.poll_s, -MAX_POLL_S
    while (waited := time.monotonic() - began) < job.commit_deadline_s:
        if waited - checked >= MAX_POLL_S:
            refuse_when_fenced(job, folder)
            checked = waited
        yield waited
        time.sleep(pause)
        pause = min(MAX_POLL_S, pause * 1.5)
    raise SaveFailed(f"{ref.uri}: {waiting_for()} after {job.commit_deadline_s:.0f} s; it is given up and never read")


def refuse_when_fenced(job: SaverJob, folder: JobFolder) -> None:
    """Raises Fenced when an attempt after ours was claimed: it resumes from what was committed before."""
    newest = max(folder.attempt_numbers(), default=job.attempt)
    if newest > job.attempt:
        raise Fenced(f"attempt {newest} of {folder.uri} was claimed; attempt {job.attempt} writes nothing more")


class Merger:
    """Puts together what ranks say of the tensors they share, rank by rank: 512 ranks' pieces of a 3B model are a million."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], TensorEntry] = {}
        self._pieces: dict[tuple[str, str], list[Piece]] = {}

    def add(self, entries: Iterable[TensorEntry]) -> None:
        """One rank's. Raises SaveFailed when it disagrees with another."""
        for entry in entries:
            key = entry.part, entry.name
            known = self._kinds.get(key) or self._kinds.setdefault(key, replace(entry, pieces=()))
            if (known.dtype, known.shape) != (entry.dtype, entry.shape):
                raise SaveFailed(f"{entry.name} is {known.dtype} {known.shape} on one rank and {entry.dtype} {entry.shape} on another")
            pieces = self._pieces.setdefault(key, [])
            for piece in entry.pieces:
                longer = joined(pieces[-1], piece) if pieces else None
                if longer is None:
                    pieces.append(piece)
                else:
                    pieces[-1] = longer

    def merged(self) -> tuple[TensorEntry, ...]:
        """One entry a tensor, sorted. Raises SaveFailed when the pieces do not cover it exactly once."""
        entries = [replace(self._kinds[key], pieces=packed(self._pieces[key])) for key in sorted(self._kinds)]
        for entry in entries:
            _check_cover(entry)
        return tuple(entries)


def merge_entries(entries: Iterable[TensorEntry]) -> tuple[TensorEntry, ...]:
    """One entry a tensor with all ranks' pieces. Raises SaveFailed as `Merger` does."""
    merger = Merger()
    merger.add(entries)
    return merger.merged()


def _check_cover(entry: TensorEntry) -> None:
    covered = sum(prod(piece.span) for piece in entry.pieces)
    if covered != prod(entry.shape) or overlap(entry.pieces, entry.shape):
        raise SaveFailed(
            f"{entry.name}: the ranks' pieces hold {covered} of {prod(entry.shape)} elements; "
            "its mesh must span all ranks, so that each element has exactly one writer"
        )


def _missing(job: SaverJob, found: Collection[int]) -> str:
    ranks = [rank for rank in range(job.world_size) if rank not in found]
    return f"{len(ranks)} of {job.world_size} ranks have not written their part (rank {ranks[0]} first)" if ranks else "nothing is missing"
