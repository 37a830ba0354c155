"""Writes small checkpoints as the saving processes do, object by object, without torch: for tests of what reads and removes them."""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stagecoach.checkpoints.listing import COMMITTED, MANIFEST, CheckpointRef, checkpoint_ref
from stagecoach.checkpoints.manifest import BYTES_OF
from stagecoach.contract.checkpoint import (
    CheckpointManifest,
    CheckpointPart,
    CheckpointValues,
    ObjectDigests,
    Piece,
    RankDigests,
    TensorEntry,
)
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import encode
from stagecoach.storage import digest as xxh3

IDENTITY = "ab" * 32


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A tensor before it is cut: along `dim` among all ranks, or not at all (rank 0 writes it)."""

    part: CheckpointPart
    name: str
    dtype: str
    shape: tuple[int, ...]
    body: bytes
    dim: int | None = 0


def small_state(seed: int, *, big_rows: int = 0) -> list[Whole]:
    """Tensors of every sort: cut by rows, by columns, not cut, a scalar. Equal seeds give equal bytes.

    `big_rows` rows of 1 MiB make one that spans blocks.
    """
    made = random.Random(seed)
    shapes: list[tuple[CheckpointPart, str, str, tuple[int, ...], int | None]] = [
        ("model", "decoder.embedding.weight", "F32", (37, 16), 0),
        ("model", "decoder.blocks.0.ffn.up.weight", "F32", (24, 10), 1),
        ("model", "encoder.patches.weight", "BF16", (8, 3, 4, 4), 0),
        ("model", "decoder.norm.weight", "F32", (16,), None),
        ("optimizer", "decoder.embedding.weight:exp_avg", "F32", (37, 16), 0),
        ("optimizer", "decoder.embedding.weight:step", "F32", (), None),
    ]
    if big_rows:
        shapes.append(("model", "decoder.head.weight", "F32", (big_rows, (1 << 20) // 4), 0))
    return [
        Whole(part=part, name=name, dtype=dtype, shape=shape, body=made.randbytes(math.prod(shape) * BYTES_OF[dtype]), dim=dim)
        for part, name, dtype, shape, dim in shapes
    ]


def write_checkpoint(
    job: JobFolder,
    step: int,
    attempt: int = 1,
    *,
    state: Sequence[Whole] | None = None,
    world_size: int = 2,
    identity: str = IDENTITY,
    commit: bool = True,
) -> CheckpointRef:
    """Writes one. Without `state` it holds numbers that only this step and attempt have, with the same sizes for all."""
    ref = checkpoint_ref(job, step, attempt)
    state = small_state(step * 1000 + attempt) if state is None else state
    ranks = [_write_rank(job, ref, state, rank, world_size) for rank in range(world_size)]
    manifest = CheckpointManifest(
        job_uri=job.uri,
        step=step,
        attempt=attempt,
        identity=identity,
        world_size=world_size,
        mesh={"dp_replicate": 1, "dp_shard": world_size},
        objects=tuple(entry for rank in ranks for entry in rank.objects),
        tensors=_merged(ranks),
    )
    body = encode(manifest)
    job.store.publish(f"{ref.key}/{MANIFEST}", body)
    if commit:
        job.store.create_if_absent(f"{ref.key}/{COMMITTED}", hashlib.sha256(body).hexdigest().encode())
    return ref


def rewrite_manifest(job: JobFolder, ref: CheckpointRef, body: bytes) -> None:
    """Puts another manifest in place, with a COMMITTED that proves it."""
    job.store.publish(f"{ref.key}/{MANIFEST}", body)
    job.store.publish(f"{ref.key}/{COMMITTED}", hashlib.sha256(body).hexdigest().encode())


def _write_rank(job: JobFolder, ref: CheckpointRef, state: Sequence[Whole], rank: int, world_size: int) -> RankDigests:
    bodies: dict[str, bytes] = {}
    tensors: list[TensorEntry] = []
    parts: tuple[CheckpointPart, ...] = ("model", "optimizer")
    for part in parts:
        name = f"{part}-{rank:05d}.safetensors"
        bodies[name], entries = _safetensors([each for each in state if each.part == part], name, rank, world_size)
        tensors += entries
    if rank == 0:
        bodies["state.json"] = _values({"step": f"{ref.step:08d}", "attempt": f"{ref.attempt:04d}"})
    own = random.Random(f"{ref.step} {ref.attempt} {rank}").randbytes(32).hex()
    bodies[f"state-{rank:05d}.json"] = _values({"random": own})
    for name, body in bodies.items():
        job.store.publish(f"{ref.key}/{name}", body)
    objects = tuple(object_digests(name, body) for name, body in bodies.items())
    digests = RankDigests(rank=rank, step=ref.step, attempt=ref.attempt, objects=objects, tensors=tuple(tensors))
    job.store.publish(f"{ref.key}/digests-{rank:05d}.json", encode(digests))
    return digests


def object_digests(name: str, body: bytes) -> ObjectDigests:
    proof = xxh3.ObjectDigest()
    proof.update(body)
    return ObjectDigests(name=name, size=len(body), blocks=proof.blocks, checksum=proof.hex())


def _values(values: Mapping[str, str]) -> bytes:
    return encode(CheckpointValues(values=values))


def _safetensors(state: Sequence[Whole], name: str, rank: int, world_size: int) -> tuple[bytes, list[TensorEntry]]:
    """One rank's boxes as a safetensors file, and where they lie in it."""
    boxes = [(whole, *box) for whole in state if (box := _box(whole, rank, world_size)) is not None]
    fields, at = {}, 0
    for whole, _offset, shape, body in boxes:
        fields[whole.name] = {"dtype": whole.dtype, "shape": list(shape), "data_offsets": [at, at + len(body)]}
        at += len(body)
    header = json.dumps(fields).encode()
    header = (len(header) + -len(header) % 64).to_bytes(8, "little") + header + b" " * (-len(header) % 64)
    entries, at = [], len(header)
    for whole, offset, shape, body in boxes:
        piece = Piece(object=name, start=at, size=len(body), offset=offset, shape=shape)
        entries.append(TensorEntry(part=whole.part, name=whole.name, dtype=whole.dtype, shape=whole.shape, pieces=(piece,)))
        at += len(body)
    return header + b"".join(body for *_, body in boxes), entries


def _box(whole: Whole, rank: int, world_size: int) -> tuple[tuple[int, ...], tuple[int, ...], bytes] | None:
    """(offset, shape, bytes) of what a rank holds: rows or columns, as evenly as they go; None when it holds nothing."""
    if whole.dim is None:
        return ((0,) * len(whole.shape), whole.shape, whole.body) if rank == 0 else None
    length = -(-whole.shape[whole.dim] // world_size)  # as torch chunks it
    start, stop = (min(whole.shape[whole.dim], cut * length) for cut in (rank, rank + 1))
    if start == stop:
        return None
    offset, shape = [0] * len(whole.shape), list(whole.shape)
    offset[whole.dim], shape[whole.dim] = start, stop - start
    return tuple(offset), tuple(shape), b"".join(_runs(whole, whole.dim, start, stop))


def _runs(whole: Whole, dim: int, start: int, stop: int) -> Iterator[bytes]:
    inner = math.prod(whole.shape[dim + 1 :]) * BYTES_OF[whole.dtype]
    row = whole.shape[dim] * inner
    for first in range(0, len(whole.body), row):
        yield whole.body[first + start * inner : first + stop * inner]


def _merged(ranks: Sequence[RankDigests]) -> tuple[TensorEntry, ...]:
    pieces: dict[tuple[str, str], list[Piece]] = {}
    first: dict[tuple[str, str], TensorEntry] = {}
    for entry in (entry for rank in ranks for entry in rank.tensors):
        first.setdefault((entry.part, entry.name), entry)
        pieces.setdefault((entry.part, entry.name), []).extend(entry.pieces)
    return tuple(
        TensorEntry(part=one.part, name=one.name, dtype=one.dtype, shape=one.shape, pieces=tuple(pieces[key])) for key, one in first.items()
    )
