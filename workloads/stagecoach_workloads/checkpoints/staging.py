"""The state, copied to host memory that the saving process sees too.

The memory is a file without a name: an anonymous one, or an unlinked one in `staging_dir`. It is used again for every save, and is gone
with the last process that has it open, however that ends.
"""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stagecoach_workloads.checkpoints.layout import Layout, StagedTensor

CHUNK_BYTES = 32 << 20  # one large tensor is copied by all threads


class StagingBuffer:
    """Bytes shared with the saving process through `descriptor`."""

    def __init__(self, folder: str | None, threads: int) -> None:
        """Raises OSError when the folder cannot be written."""
        self.descriptor = _nameless_file(folder)
        self.size = 0
        self._map: mmap.mmap | None = None
        self._bytes: Tensor | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="checkpoint-copy")
        self._is_pinned = False

    def reserve(self, size: int) -> None:
        """Makes room and touches all of it now: a lack of memory or disk is an OSError here and no SIGBUS later, a copy finds its pages."""
        if size <= self.size:
            return
        os.posix_fallocate(self.descriptor, 0, size)
        self._release()
        self._map = mmap.mmap(self.descriptor, size)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._bytes[:: mmap.PAGESIZE].zero_()  # by torch, which lets other threads run meanwhile
        self.size = size
        self._is_pinned = _pin(self._bytes)

    def copy(self, layout: Layout, after: Any = None) -> None:
        """Copies headers and tensors to their places. `after`: a CUDA event before which the tensors are not ready."""
        self.reserve(layout.size)
        if self._map is None or self._bytes is None:  # a rank that holds nothing
            return
        for item in layout.objects:
            self._map[item.start : item.start + len(item.header)] = item.header
        with _side_stream(after):
            jobs = [job for tensor in layout.tensors for job in self._copies(tensor)]
            if any(tensor.local.is_cuda for tensor in layout.tensors):
                for job in jobs:  # the device's copy engine does the work
                    job()
            else:
                _all(self._pool, jobs)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._release()
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    def _copies(self, tensor: StagedTensor) -> list[Callable[[], object]]:
        assert self._bytes is not None
        place = self._bytes[tensor.start : tensor.start + tensor.size].view(tensor.local.dtype)
        if not tensor.local.is_contiguous():
            return [_copy(place.view(tensor.local.shape), tensor.local)]
        source, step = tensor.local.view(-1), CHUNK_BYTES // tensor.local.element_size()
        return [_copy(place[at : at + step], source[at : at + step]) for at in range(0, source.numel(), step)]

    def _release(self) -> None:
        if self._is_pinned and self._bytes is not None:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())  # type: ignore[no-untyped-call]
        self._bytes = self._map = None  # unmapped once nobody views it
        self._is_pinned, self.size = False, 0


def _nameless_file(folder: str | None) -> int:
    if folder is None:
        return os.memfd_create("stagecoach-checkpoint", 0)
    descriptor, path = tempfile.mkstemp(prefix="stagecoach-checkpoint-", dir=folder)
    os.unlink(path)
    os.set_inheritable(descriptor, True)
    return descriptor


def _copy(place: Tensor, source: Tensor) -> Callable[[], object]:
    return lambda: place.copy_(source, non_blocking=source.is_cuda)


def _all(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], object]]) -> None:
    for future in [pool.submit(job) for job in jobs]:
        future.result()


def _pin(memory: Tensor) -> bool:
    """Lets the GPU copy straight into it, at several times the speed."""
    if not torch.cuda.is_available():
        return False
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _side_stream(after: Any) -> Any:
    """Copies of a GPU's tensors run beside the next step's compute, and are complete on leaving."""
    if after is None:
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_event(after)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
