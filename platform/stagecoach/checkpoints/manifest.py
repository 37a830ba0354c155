"""MANIFEST.json of one checkpoint, read strictly: proven by COMMITTED, of this job, step and attempt, and true to itself."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence

from stagecoach.checkpoints.listing import COMMITTED, MANIFEST, CheckpointRef
from stagecoach.contract.checkpoint import BLOCK_BYTES, CheckpointManifest, ObjectDigests, Piece, TensorEntry, object_after
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode, shortened
from stagecoach.errors import CheckpointError, ContractError, NewerFormat
from stagecoach.storage import NotFound, ObjectCorrupt

BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_SHA256 = re.compile(r"[0-9a-f]{64}")
_XXH3 = re.compile(r"[0-9a-f]{32}")
_OBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_JOB = re.compile(r"/((?:runs/[^/]+/stages/.+)|(?:jobs/[^/]+))$")


class DamagedCheckpoint(CheckpointError):
    """Its bytes are not those that were committed. Quarantine it and take the one before."""


class ForeignCheckpoint(CheckpointError):
    """A sound checkpoint of another job or plan. Nothing is wrong with it, but it is not this job's to resume."""


class NewerCheckpoint(CheckpointError, NewerFormat):
    """A later Stagecoach wrote it. Nothing is wrong with it, but this program is too old."""


def read_manifest(job: JobFolder, ref: CheckpointRef, *, identity: str | None = None) -> tuple[CheckpointManifest, str]:
    """The manifest and its SHA-256 (hex).

    Raises DamagedCheckpoint when it is not what COMMITTED says, or is of another step or attempt; NewerCheckpoint; ForeignCheckpoint when
    it is another job's, or of another plan than `identity` (the hash of the plan that resumes; None: any).
    """
    committed = _read(job, ref, COMMITTED)
    digest = committed.decode("ascii", "replace").strip()
    if not _SHA256.fullmatch(digest):
        raise DamagedCheckpoint(f"{ref.uri}/{COMMITTED} holds {shortened(repr(digest))}; expected the SHA-256 of {MANIFEST}, 64 hex digits")
    body = _read(job, ref, MANIFEST)
    found = hashlib.sha256(body).hexdigest()
    if found != digest:
        raise DamagedCheckpoint(f"{ref.uri}/{MANIFEST} has SHA-256 {found}, but {digest} was committed: it is damaged or was edited")
    try:
        manifest = decode(CheckpointManifest, body, uri=f"{ref.uri}/{MANIFEST}")
    except NewerFormat as error:
        raise NewerCheckpoint(str(error)) from error
    except ContractError as error:
        raise DamagedCheckpoint(str(error)) from error
    _check_place(job, ref, manifest, identity)
    check_consistent(manifest, ref.uri)
    return manifest, digest


def _read(job: JobFolder, ref: CheckpointRef, name: str) -> bytes:
    try:
        return job.store.read(f"{ref.key}/{name}")
    except NotFound:
        raise DamagedCheckpoint(f"{ref.uri}/{name} is missing") from None
    except ObjectCorrupt as error:
        raise DamagedCheckpoint(str(error)) from error


def _check_place(job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest, identity: str | None) -> None:
    if (manifest.step, manifest.attempt) != (ref.step, ref.attempt):
        raise DamagedCheckpoint(
            f"{ref.uri}/{MANIFEST} is of step {manifest.step}, attempt {manifest.attempt}: it was copied here from another checkpoint"
        )
    if _job_of(manifest.job_uri) != _job_of(job.uri):
        raise ForeignCheckpoint(
            f"{ref.uri} was written by the job {manifest.job_uri}, not by {job.uri}; to go on from another run's checkpoint, fork that run"
        )
    if identity is not None and manifest.identity != identity:
        raise ForeignCheckpoint(
            f"{ref.uri} is of a plan with identity {manifest.identity[:12]}, this plan has {identity[:12]}: something that decides the "
            "weights was changed (model, data, batch, optimizer, schedule, seed, duration); fork the run to change it"
        )


def _job_of(uri: str) -> str:
    """A job's place below its root: a bucket that was moved as a whole is still the same run's."""
    match = _JOB.search(uri.rstrip("/"))
    return match[1] if match else uri.rstrip("/")


# --- true to itself


def check_consistent(manifest: CheckpointManifest, uri: str) -> None:
    """Raises DamagedCheckpoint when objects or pieces contradict each other: then no reader could put the tensors together."""
    objects = {entry.name: entry for entry in manifest.objects}
    said: list[str] = [] if len(objects) == len(manifest.objects) else ["two objects have one name"]
    said += [problem for entry in manifest.objects if (problem := _wrong_object(entry))]
    seen: set[tuple[str, str]] = set()
    for tensor in manifest.tensors:
        if (tensor.part, tensor.name) in seen:
            said.append(f"the {tensor.part} tensor {tensor.name} is there twice")
        seen.add((tensor.part, tensor.name))
        if problem := _wrong_tensor(tensor, objects):
            said.append(f"{tensor.name}: {problem}")
    if said:
        more = f" (and {len(said) - 10} more)" if len(said) > 10 else ""
        raise DamagedCheckpoint(f"{uri}/{MANIFEST} contradicts itself: {'; '.join(said[:10])}{more}")


def _wrong_object(entry: ObjectDigests) -> str:
    if not _OBJECT.fullmatch(entry.name):
        return f"{shortened(repr(entry.name))} is no name of an object"
    if len(entry.blocks) != math.ceil(entry.size / BLOCK_BYTES) or not all(map(_XXH3.fullmatch, entry.blocks)):
        return f"{entry.name} of {entry.size} bytes has {len(entry.blocks)} block digests; expected {math.ceil(entry.size / BLOCK_BYTES)}"
    return ""


def _wrong_tensor(tensor: TensorEntry, objects: dict[str, ObjectDigests]) -> str:
    width = BYTES_OF.get(tensor.dtype)
    if width is None:
        return f"dtype {shortened(tensor.dtype)} is not known; known: {', '.join(BYTES_OF)}"
    for piece in tensor.pieces:
        if problem := _wrong_holders(piece, objects):
            return problem
        if len(piece.offset) != len(tensor.shape) or len(piece.shape) != len(tensor.shape):
            return f"a piece has {len(piece.shape)} dimensions, the tensor {len(tensor.shape)}"
        if piece.count > 1 and not (piece.along < len(tensor.shape) and piece.shape[piece.along]):
            return f"{piece.count} boxes cannot follow each other along dimension {piece.along} of {list(piece.shape)}"
        if any(at + length > whole for at, length, whole in zip(piece.offset, piece.span, tensor.shape, strict=True)):
            return f"a piece of shape {list(piece.span)} at {list(piece.offset)} reaches out of {list(tensor.shape)}"
        if piece.size != math.prod(piece.shape) * width:
            return f"a piece of shape {list(piece.shape)} in {tensor.dtype} has {piece.size} bytes"
    if sum(math.prod(piece.span) for piece in tensor.pieces) != math.prod(tensor.shape) or overlap(tensor.pieces, tensor.shape):
        return f"its pieces do not cover {list(tensor.shape)} exactly once"
    return ""


def _wrong_holders(piece: Piece, objects: dict[str, ObjectDigests]) -> str:
    """Each of a piece's boxes lies in an object that is listed, and within it."""
    if piece.count > len(objects):
        return f"{piece.count} boxes of it would be in as many objects, and the manifest lists {len(objects)}"
    for number in range(piece.count):
        try:
            name = object_after(piece.object, number)
        except ValueError as error:
            return shortened(str(error))
        holder = objects.get(name)
        if holder is None:
            return f"a piece of it is in {shortened(name)}, which the manifest does not list"
        if piece.start + piece.size > holder.size:
            return f"bytes {piece.start} to {piece.start + piece.size} of {name} are past its end at {holder.size}"
    return ""


def overlap(pieces: Sequence[Piece], shape: Sequence[int]) -> bool:
    """Whether two boxes share an element: a sweep along the dimension with the most cuts."""
    boxes = [piece for piece in pieces if piece.size]
    if len(boxes) < 2:
        return False
    if not shape:
        return True
    dim = max(range(len(shape)), key=lambda d: len({box.offset[d] for box in boxes}))
    boxes.sort(key=lambda box: box.offset[dim])
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            if other.offset[dim] >= box.offset[dim] + box.span[dim]:
                break
            if _share(zip(box.offset, box.span, other.offset, other.span, strict=True)):
                return True
    return False


def _share(dims: Iterable[tuple[int, int, int, int]]) -> bool:
    return all(at < there + their_length and there < at + length for at, length, there, their_length in dims)
