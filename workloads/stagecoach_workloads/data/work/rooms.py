"""Memory that worker processes share with the process they work for, used again and again: a worker makes a batch in a room, and the room
is free once the batch's last tensor is gone.

Each tensor sent the usual way is a new file in shared memory, new pages and a handshake. Rooms have no name (memfd): however a process
ends, nothing stays behind.
"""

import math
import mmap
import os
import weakref
from dataclasses import dataclass, fields
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from stagecoach.contract.plan import StagePlan
from stagecoach_workloads.data.work.collate import Batch

_ALIGN = 64  # bytes
_TENSORS = 64 * 1024  # bytes for a batch's small tensors, and for aligning all of them


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in its room a tensor lies, in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def array(self, memory: np.ndarray) -> np.ndarray:
        return np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch on its way: its fields, with places instead of tensors."""

    room: int
    fields: dict[str, Any]


class FullError(Exception):
    """The room is too small for the batch."""


class Room:
    """One room in its worker. Arrays are laid in it one behind the other."""

    def __init__(self, number: int, memory: np.ndarray) -> None:
        """`memory` is flat uint8."""
        self.number, self._memory, self._used = number, memory, 0
        self._address = memory.ctypes.data

    def empty(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """As `np.empty`. Raises FullError."""
        return np.ndarray(shape, dtype, self._memory, self._take(math.prod(shape) * np.dtype(dtype).itemsize))

    def pack(self, batch: Batch) -> Parcel:
        """The batch with all of its tensors in the room: what was made elsewhere is copied. Raises FullError."""
        found = {item.name: getattr(batch, item.name) for item in fields(batch)}
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                found[name] = self._place(value.numpy())
        found["pixel_values"] = [self._place(pixels.numpy()) for pixels in batch.pixel_values]
        return Parcel(self.number, found)

    def _place(self, array: np.ndarray) -> _Place:
        at = array.ctypes.data - self._address
        if 0 <= at < len(self._memory):
            return _Place(at, array.shape, array.strides, array.dtype.str)
        place = _Place(self._take(array.nbytes), array.shape, array.strides, array.dtype.str)  # dense, whatever the order of its axes
        place.array(self._memory)[...] = array
        return place

    def _take(self, size: int) -> int:
        at = self._used
        if at + size > len(self._memory):
            raise FullError
        self._used += -(-size // _ALIGN) * _ALIGN
        return at


class Rooms:
    """`each` rooms a worker, of `size` bytes. They cost the memory that was written to.

    A room is filled by its worker alone and freed by the other side alone; a byte each says whether it is taken. Goes to processes as they
    are spawned.
    """

    def __init__(self, *, workers: int, each: int, size: int) -> None:
        self._open(os.memfd_create("stagecoach-rooms"), workers * each, each, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def _open(self, descriptor: int, count: int, each: int, size: int) -> None:
        self._descriptor, self._count, self._each, self._size = descriptor, count, each, size
        weakref.finalize(self, os.close, descriptor)
        self._first = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE  # the bytes that say what is taken come before it
        os.ftruncate(descriptor, self._first + count * size)
        self._shared = mmap.mmap(descriptor, 0)
        self._taken = np.frombuffer(self._shared, np.uint8, count)

    def __getstate__(self) -> dict[str, Any]:
        return {"descriptor": DupFd(self._descriptor), "count": self._count, "each": self._each, "size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state.pop("descriptor").detach(), **state)

    def free_of(self, worker: int) -> Room | None:
        """A free room of this worker's: the first, so that those that are never needed cost nothing."""
        for number in range(worker * self._each, (worker + 1) * self._each):
            if not self._taken[number]:
                return Room(number, self._memory(number))
        return None

    def send(self, parcel: Parcel) -> Parcel:
        """In the worker, last of all: from here on the room is taken."""
        self._taken[parcel.room] = 1
        return parcel

    def receive(self, parcel: Parcel) -> Batch:
        """The batch. Each of its tensors holds the room."""
        memory = self._memory(parcel.room)
        weakref.finalize(memory, self._taken.__setitem__, parcel.room, 0).atexit = False
        found = dict(parcel.fields)
        for name, value in found.items():
            if isinstance(value, _Place):
                found[name] = torch.from_numpy(value.array(memory))
        found["pixel_values"] = [torch.from_numpy(place.array(memory)) for place in found["pixel_values"]]
        return Batch(**found)

    def _memory(self, number: int) -> np.ndarray:
        """A new array each time: arrays made of it hold it, and nothing else does."""
        return np.frombuffer(self._shared, np.uint8, self._size, self._first + number * self._size)


def room_bytes(stage: StagePlan) -> int:
    """Of the largest microstep that the plan allows."""
    batch, tile = stage.batch, stage.model.image.size
    row = 4 * 8 * batch.seq_len + stage.data.packing.images_per_row * (3 * tile**2 + 7 * 8)
    return stage.layout.microbatch_rows * row + _TENSORS
