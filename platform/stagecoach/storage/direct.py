"""Large ranges of a file, read past the page cache (O_DIRECT).

For bytes that are wanted once: a page of the cache costs the processor more than the bytes in it (0.5 to 2 s per GB on a virtual machine,
whose new pages come from its host, against 0.1), and pushes out what somebody reads again.
"""

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from functools import cache
from typing import Any

ALIGNMENT = 4096  # of places in a file; what a disk asks of memory, the kernel says
LEAST_BYTES = 1 << 20  # less gains nothing
REFUSED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}  # by a file system without it
_STRIDE = 8 << 20  # read at once


class _PerThread(threading.local):
    """Pages to read into, whose bytes are then copied: where they belong seldom begins at a page."""

    pages: mmap.mmap | None = None


_own = _PerThread()


def fill(path: str, cached: int, start: int, left: deque[memoryview]) -> int:
    """Fills the buffers in `left` from byte `start` of a file on and takes out what is full. Returns how many bytes were read.

    That is fewer than there is room for where the file ends, and 0 where the page cache (of descriptor `cached`) has them already or the
    file system cannot do without. Raises OSError.
    """
    stop = start + sum(buffer.nbytes for buffer in left)
    if not hasattr(os, "O_DIRECT") or stop - start < LEAST_BYTES or _is_cached(cached, start, stop):
        return 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno in REFUSED:
            return 0
        raise
    try:
        return _read(descriptor, start, stop, left)
    finally:
        os.close(descriptor)


def take(left: deque[memoryview], size: int) -> None:
    """The first `size` bytes of the buffers are filled: what is left begins after them."""
    while left and size >= left[0].nbytes:
        size -= left.popleft().nbytes
    if size:
        left[0] = left[0][size:]


def _read(descriptor: int, start: int, stop: int, left: deque[memoryview]) -> int:
    if _own.pages is None:
        _own.pages = mmap.mmap(-1, _STRIDE)
    at = start
    with memoryview(_own.pages) as pages:
        while at < stop:
            skipped = at % ALIGNMENT
            wanted = min(_STRIDE, skipped + stop - at)
            try:
                got = os.preadv(descriptor, [pages[: -(-wanted // ALIGNMENT) * ALIGNMENT]], at - skipped)
            except OSError as error:
                if error.errno in REFUSED:
                    break
                raise
            if got <= skipped:  # the file ends
                break
            new = pages[skipped : min(got, wanted)]
            _pour(new, left)
            at += new.nbytes
    return at - start


def _pour(source: memoryview, left: deque[memoryview]) -> None:
    while source.nbytes:
        size = min(source.nbytes, left[0].nbytes)
        left[0][:size] = source[:size]
        take(left, size)
        source = source[size:]


def _is_cached(descriptor: int, start: int, stop: int) -> bool:
    """Whether most of these bytes lie in the page cache. True where the kernel does not tell; to ask reads nothing."""
    first, stop = start - start % mmap.ALLOCATIONGRANULARITY, min(stop, os.fstat(descriptor).st_size)
    if _mincore() is None or first >= stop:
        return True
    pages = (ctypes.c_ubyte * -(-(stop - first) // mmap.PAGESIZE))()
    try:
        mapped = mmap.mmap(descriptor, stop - first, flags=mmap.MAP_PRIVATE, offset=first)  # private: else its address is not to be had
    except (OSError, ValueError):  # some file systems of user space map no files; a file that was just cut short
        return True
    with mapped:
        place = ctypes.c_char.from_buffer(mapped)
        failed = _mincore()(ctypes.addressof(place), stop - first, pages)
        del place  # or the mapping could not be closed
    return bool(failed) or 2 * sum(page & 1 for page in pages) >= len(pages)


@cache
def _mincore() -> Any:
    """Linux's call, which Python does not have; None elsewhere."""
    call = getattr(ctypes.CDLL(None), "mincore", None)
    if call is not None:
        call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return call
