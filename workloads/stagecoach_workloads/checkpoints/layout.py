"""Where each tensor of this rank lies: in which object, and at which byte of the host buffer.

The buffer is the objects, one after the other, headers included, so that an object's bytes are a slice of it. An object is a
safetensors file (https://github.com/huggingface/safetensors#format): 8 bytes of header length, the header, the tensors without gaps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stagecoach.contract.checkpoint import CheckpointPart, Piece, TensorEntry
from stagecoach_workloads.checkpoints.state import PARTS, CheckpointState, LocalBox, dtype_name, local_box

PAGE_BYTES = 4096
HEADER_ALIGNMENT = 64  # larger than any element, so each tensor may be viewed where it lies


@dataclass(frozen=True, kw_only=True)
class StagedTensor:
    """One local tensor and its first byte in the buffer."""

    start: int
    size: int
    local: Tensor


@dataclass(frozen=True, kw_only=True)
class StagedObject:
    """One object and its bytes in the buffer."""

    name: str
    start: int
    size: int
    header: bytes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All that this rank writes. `entries` name every tensor of the state on rank 0, elsewhere those of which it writes a box."""

    objects: tuple[StagedObject, ...]
    tensors: tuple[StagedTensor, ...]
    entries: tuple[TensorEntry, ...]
    size: int  # bytes of the buffer


@dataclass(frozen=True, kw_only=True)
class _Boxed:
    name: str
    dtype: str
    box: LocalBox


def build_layout(state: CheckpointState, rank: int) -> Layout:
    """Lays out this rank's boxes. Raises CheckpointError for a tensor that cannot be saved."""
    objects: list[StagedObject] = []
    tensors: list[StagedTensor] = []
    entries: list[TensorEntry] = []
    end = 0
    for part in PARTS:
        boxed = _boxes(state.part(part), rank)
        written = [item for item in boxed if item.box.is_writer and not item.box.is_empty]
        written.sort(key=lambda item: (-item.box.local.element_size(), item.name))
        object_name = f"{part}-{rank:05d}.safetensors"
        header = _header(written)
        at, pieces = len(header), {}
        for item in written:
            pieces[item.name] = _piece(item.box, object_name, at)
            tensors.append(StagedTensor(start=end + at, size=item.box.num_bytes, local=item.box.local))
            at += item.box.num_bytes
        entries += [_entry(part, item, pieces.get(item.name)) for item in boxed if rank == 0 or item.name in pieces]
        if written:
            objects.append(StagedObject(name=object_name, start=end, size=at, header=header))
            end += -(-at // PAGE_BYTES) * PAGE_BYTES
    return Layout(objects=tuple(objects), tensors=tuple(tensors), entries=tuple(entries), size=end)


def _boxes(tensors: Mapping[str, Tensor], rank: int) -> list[_Boxed]:
    boxes = ((name, local_box(name, tensor, rank)) for name, tensor in tensors.items())
    return [_Boxed(name=name, dtype=dtype_name(box.local), box=box) for name, box in boxes]


def _header(written: Sequence[_Boxed]) -> bytes:
    """Names, types, shapes of the boxes and where they lie; where the boxes belong stands in the manifest."""
    at, fields = 0, {}
    for item in written:
        offsets = [at, at + item.box.num_bytes]
        fields[item.name] = {"dtype": item.dtype, "shape": list(item.box.box_shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _piece(box: LocalBox, object_name: str, start: int) -> Piece:
    return Piece(object=object_name, start=start, size=box.num_bytes, offset=box.box_offset, shape=box.box_shape)


def _entry(part: CheckpointPart, item: _Boxed, piece: Piece | None) -> TensorEntry:
    pieces = (piece,) if piece is not None else ()
    return TensorEntry(part=part, name=item.name, dtype=item.dtype, shape=item.box.shape, pieces=pieces)
