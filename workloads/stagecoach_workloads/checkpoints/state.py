"""What is saved and loaded, and which box of each tensor this rank has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # what torch's own planners use

from stagecoach.contract.checkpoint import CheckpointPart
from stagecoach.errors import CheckpointError

PARTS: tuple[CheckpointPart, ...] = ("model", "optimizer")

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass
class CheckpointState:
    """A rank's part of a training state.

    Tensors are DTensors (this rank's shard is saved) or plain ones (equal on all ranks; rank 0's is saved), of any shape, 0-dim too.
    """

    model: Mapping[str, Tensor]  # every parameter, the frozen ones too
    optimizer: Mapping[str, Tensor]  # "{parameter}:{key}"
    shared: dict[str, Any] = field(default_factory=dict)  # JSON; equal on all ranks
    own: dict[str, Any] = field(default_factory=dict)  # JSON; this rank's

    def part(self, name: CheckpointPart) -> Mapping[str, Tensor]:
        return self.model if name == "model" else self.optimizer


@dataclass(frozen=True, kw_only=True)
class LoadedValues:
    """What came back beside the tensors. `own` is None when it was saved by another world size or mesh."""

    step: int
    shared: dict[str, Any]
    own: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class LocalBox:
    """The part of a tensor that this rank holds."""

    shape: tuple[int, ...]  # of the whole tensor
    box_offset: tuple[int, ...]
    box_shape: tuple[int, ...]
    is_writer: bool  # exactly one rank is, for each element of the tensor
    local: Tensor  # box_shape

    @property
    def is_empty(self) -> bool:
        return 0 in self.box_shape

    @property
    def num_bytes(self) -> int:
        return self.local.numel() * self.local.element_size()


def dtype_name(tensor: Tensor) -> str:
    """As safetensors calls it. Raises CheckpointError for a type that it does not know."""
    if tensor.dtype not in _NAMES:
        raise CheckpointError(f"a tensor of {tensor.dtype} cannot be saved; checkpoints hold {', '.join(sorted(_DTYPES))}")
    return _NAMES[tensor.dtype]


def torch_dtype(name: str) -> torch.dtype:
    """The type that safetensors calls so. A manifest that was read knows no other names."""
    return _DTYPES[name]


def local_box(name: str, tensor: Tensor, rank: int) -> LocalBox:
    """This rank's box. Raises CheckpointError for a placement that is neither replicated nor sharded."""
    if not isinstance(tensor, DTensor):
        shape = tuple(tensor.shape)
        return LocalBox(shape=shape, box_offset=(0,) * len(shape), box_shape=shape, is_writer=rank == 0, local=tensor.detach())
    if not all(type(placement) in (Replicate, Shard) for placement in tensor.placements):
        raise CheckpointError(f"{name} has placements {tensor.placements}; only replicated and evenly sharded tensors can be saved")
    with torch.no_grad():
        local = tensor.to_local()
    shape, coordinate = tuple(tensor.shape), tensor.device_mesh.get_coordinate()
    if coordinate is None:  # another mesh's tensor
        return LocalBox(shape=shape, box_offset=(0,) * len(shape), box_shape=(0,) * len(shape), is_writer=False, local=local)
    box_shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    is_first = all(place == 0 for place, placement in zip(coordinate, tensor.placements, strict=True) if isinstance(placement, Replicate))
    return LocalBox(
        shape=shape, box_offset=tuple(int(i) for i in offset), box_shape=tuple(int(i) for i in box_shape), is_writer=is_first, local=local
    )
