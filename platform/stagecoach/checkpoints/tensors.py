"""Whole tensors out of their pieces, a band of rows at a time, and the digest of all weights (interfaces.md section 6)."""

import hashlib
import itertools
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence

from stagecoach.checkpoints.listing import CheckpointRef
from stagecoach.checkpoints.manifest import BYTES_OF
from stagecoach.contract.checkpoint import CheckpointManifest, Piece, TensorEntry
from stagecoach.contract.ledger import JobFolder
from stagecoach.storage.digest import Digest

BAND_BYTES = 64 << 20


class WeightsDigest:
    """SHA-256 over tensors sorted by name: name, dtype, shape and XXH3-128 of all bytes of each. The same for any world size."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._last = ""

    def add(self, name: str, dtype: str, shape: Sequence[int], checksum: str) -> None:
        """`dtype` as safetensors writes it ("F32"), `checksum` the XXH3-128 (hex) of the row-major little-endian bytes.

        Raises ValueError when names do not come in order.
        """
        if self._last and name <= self._last:
            raise ValueError(f"{name} after {self._last}: tensors are added sorted by name, each once")
        self._last = name
        self._sha256.update(json.dumps([name, dtype, list(shape), checksum]).encode() + b"\n")

    def hex(self) -> str:
        return self._sha256.hexdigest()


def weights_digest(job: JobFolder, ref: CheckpointRef, manifest: CheckpointManifest) -> str:
    """Of the model's tensors in one checkpoint, whatever the number of ranks that wrote it. Reads all of them, 64 MiB at a time."""
    total = WeightsDigest()
    for tensor in sorted((each for each in manifest.tensors if each.part == "model"), key=lambda each: each.name):
        total.add(tensor.name, tensor.dtype, tensor.shape, tensor_checksum(job, ref, tensor))
    return total.hex()


def tensor_checksum(job: JobFolder, ref: CheckpointRef, tensor: TensorEntry) -> str:
    """XXH3-128 (hex) of the whole tensor's bytes, row-major."""
    digest = Digest()
    for band in bands(job, ref, tensor):
        digest.update(band)
    return digest.hex()


def read_tensor(job: JobFolder, ref: CheckpointRef, tensor: TensorEntry) -> bytes:
    """All bytes of a tensor, row-major."""
    return b"".join(bands(job, ref, tensor))


def bands(job: JobFolder, ref: CheckpointRef, tensor: TensorEntry) -> Iterator[bytes]:
    """A tensor's bytes in row-major order: bands of whole rows of its first dimension, about 64 MiB each (one row at least)."""
    width = BYTES_OF[tensor.dtype]
    pieces = sorted((_lifted(piece) for piece in tensor.boxes() if piece.size), key=lambda piece: piece.offset[0])
    shape = tensor.shape or (1,)
    row_bytes = math.prod(shape[1:]) * width
    if not pieces:
        return
    step = max(1, BAND_BYTES // row_bytes)
    cuts = sorted({piece.offset[0] for piece in pieces} | {shape[0]})
    here: list[Piece] = []
    coming = deque(pieces)
    for start, stop in itertools.pairwise(cuts):
        while coming and coming[0].offset[0] <= start:
            here.append(coming.popleft())
        here = [piece for piece in here if stop <= piece.offset[0] + piece.shape[0]]
        for row in range(start, stop, step):
            yield _band(job, ref, here, shape, row, min(row + step, stop), width)


def _lifted(piece: Piece) -> Piece:
    """A scalar as a row of one."""
    if piece.shape:
        return piece
    return Piece(object=piece.object, start=piece.start, size=piece.size, offset=(0,), shape=(1,))


def _band(job: JobFolder, ref: CheckpointRef, pieces: Sequence[Piece], shape: Sequence[int], start: int, stop: int, width: int) -> bytes:
    """Rows [start, stop), to which each of `pieces` holds its columns."""
    bodies = []
    for piece in pieces:
        row = math.prod(piece.shape[1:]) * width
        reach = (piece.start + (start - piece.offset[0]) * row, (stop - start) * row)
        bodies.append(job.store.read_ranges(f"{ref.key}/{piece.object}", [reach])[0])
    if len(pieces) == 1 and pieces[0].shape[1:] == tuple(shape[1:]):
        return bodies[0]
    band = bytearray((stop - start) * math.prod(shape[1:]) * width)
    for piece, body in zip(pieces, bodies, strict=True):
        _paste(band, (stop - start, *shape[1:]), body, (0, *piece.offset[1:]), (stop - start, *piece.shape[1:]), width)
    return bytes(band)


def _paste(target: bytearray, shape: Sequence[int], body: bytes, offset: Sequence[int], box: Sequence[int], width: int) -> None:
    """Copies a box into its place, run by run: a run is what lies together in both."""
    dims = len(shape)
    inner = dims - 1  # the first dimension of a run: all after it are whole
    while inner > 0 and box[inner] == shape[inner]:
        inner -= 1
    strides = [math.prod(shape[dim + 1 :]) * width for dim in range(dims)]
    run = math.prod(box[inner:]) * width
    source = memoryview(body)
    for number, index in enumerate(itertools.product(*(range(length) for length in box[:inner]))):
        at = sum((offset[dim] + place) * strides[dim] for dim, place in enumerate(index)) + offset[inner] * strides[inner]
        target[at : at + run] = source[number * run : (number + 1) * run]
