"""From a checkpoint of any layout into this rank's tensors: each rank reads the boxes it needs, nothing is gathered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from stagecoach.checkpoints import DamagedCheckpoint
from stagecoach.contract.checkpoint import CheckpointManifest, CheckpointPart, Piece, TensorEntry
from stagecoach.errors import CheckpointError
from stagecoach_workloads.checkpoints.reading import ByteArray, Read
from stagecoach_workloads.checkpoints.state import CheckpointState, LocalBox, dtype_name, local_box

SHOWN_PROBLEMS = 10

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, shape; an entry a dimension


@dataclass
class LoadPlan:
    """What to read, and what to do once all of it was read."""

    reads: list[Read] = field(default_factory=list)
    _moves: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (from host memory, into the state)

    def add(self, entry: TensorEntry, box: LocalBox) -> None:
        """Reads this rank's box of one tensor. Raises DamagedCheckpoint when the pieces do not cover it."""
        if box.is_empty:
            return
        target = _host_memory(box.local)
        covered = 0
        wanted = (box.box_offset, box.box_shape)
        for piece in entry.pieces:
            covered += sum(self._add_piece(each, wanted, target) for each in boxes_near(piece, wanted))
        if covered != target.numel():
            raise DamagedCheckpoint(f"{entry.name}: the pieces in the manifest hold {covered} of the {target.numel()} elements needed")
        if target.data_ptr() != box.local.data_ptr():
            self._moves.append((target, box.local))

    def finish(self) -> None:
        """Moves what could not be read into its place."""
        with torch.no_grad():
            for source, place in self._moves:
                place.copy_(source)

    def _add_piece(self, piece: Piece, box: Box, target: Tensor) -> int:
        """Rows (along the first dimension) that piece and box share are read whole. Returns how many elements of the box they give."""
        shared = _intersection((piece.offset, piece.shape), box)
        if shared is None:
            return 0
        offset, shape = shared
        in_piece = [start - begin for start, begin in zip(offset, piece.offset, strict=True)]
        in_box = [start - begin for start, begin in zip(offset, box[0], strict=True)]
        row_bytes = prod(piece.shape[1:]) * target.element_size()
        first, rows = (in_piece[0], shape[0]) if shape else (0, 1)
        place = target[in_box[0] : in_box[0] + rows] if shape else target
        if piece.shape[1:] != shape[1:] or target.shape[1:] != place.shape[1:] or shape[1:] != tuple(target.shape[1:]):
            whole_rows = torch.empty((rows, *piece.shape[1:]), dtype=target.dtype)
            wanted = tuple(slice(start, start + size) for start, size in zip(in_piece[1:], shape[1:], strict=True))
            corner = tuple(slice(start, start + size) for start, size in zip(in_box, shape, strict=True))
            self._moves.append((whole_rows[(slice(None), *wanted)], target[corner]))
            place = whole_rows
        self.reads.append(Read(object=piece.object, start=piece.start + first * row_bytes, into=_bytes_of(place)))
        return prod(shape)


def boxes_near(piece: Piece, box: Box) -> Iterator[Piece]:
    """Those of a piece's boxes that may share something with `box`: of 512 ranks' boxes a few are looked at."""
    if piece.count == 1:
        return piece.boxes()
    start, size = box[0][piece.along] - piece.offset[piece.along], piece.shape[piece.along]
    return piece.boxes(max(0, start // size), max(0, -(-(start + box[1][piece.along]) // size)))


def plan_load(manifest: CheckpointManifest, into: CheckpointState, parts: Sequence[CheckpointPart], rank: int) -> LoadPlan:
    """Matches the checkpoint with the state. Raises CheckpointError with the first problems and their number when they do not fit."""
    plan = LoadPlan()
    for part in parts:
        entries = {entry.name: entry for entry in manifest.tensors if entry.part == part}
        tensors = into.part(part)
        if problems := differences(part, entries, tensors):
            raise CheckpointError(_tell(manifest, problems))
        for name, tensor in tensors.items():
            plan.add(entries[name], local_box(name, tensor, rank))
    return plan


def differences(part: str, entries: Mapping[str, TensorEntry], tensors: Mapping[str, Tensor]) -> list[str]:
    """Why the checkpoint's part and the state's do not fit, one sentence a tensor."""
    missing = [f"{part} {name} is not in the checkpoint" for name in sorted(tensors.keys() - entries.keys())]
    extra = [f"{part} {name} of the checkpoint is unknown here" for name in sorted(entries.keys() - tensors.keys())]
    other = []
    for name in sorted(tensors.keys() & entries.keys()):
        here, there = (dtype_name(tensors[name]), tuple(tensors[name].shape)), (entries[name].dtype, entries[name].shape)
        if here != there:
            other.append(f"{part} {name} is {there[0]} {list(there[1])} in the checkpoint and {here[0]} {list(here[1])} here")
    return missing + extra + other


def _tell(manifest: CheckpointManifest, problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return (
        f"step {manifest.step} of {manifest.job_uri} does not fit this model ({len(problems)} problems): "
        f"{'; '.join(problems[:SHOWN_PROBLEMS])}{more}. Train with the plan that wrote it, or start a new run from it"
    )


def _intersection(one: Box, other: Box) -> Box | None:
    """Offset and shape of what two boxes of a tensor share, or None."""
    offset = tuple(max(a, b) for a, b in zip(one[0], other[0], strict=True))
    stops = (min(a + n, b + m) for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True))
    shape = tuple(stop - start for start, stop in zip(offset, stops, strict=True))
    return (offset, shape) if all(size > 0 for size in shape) else None


def _host_memory(local: Tensor) -> Tensor:
    """The tensor itself where bytes can be read straight into it, else as much memory."""
    if local.device.type == "cpu" and local.is_contiguous():
        return local
    return torch.empty(local.shape, dtype=local.dtype)


def _bytes_of(tensor: Tensor) -> ByteArray:
    """A view of a contiguous tensor's bytes."""
    array: ByteArray = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return array
