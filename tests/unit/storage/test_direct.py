"""file://: large bodies in whole pages of memory pass the page cache by, where disk and memory allow it; what is read is the same."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage import OutOfRange, Store, StoreSettings, direct, open_store
from stagecoach.storage.file import FileUpload

MIB = 1 << 20
PART = 5 * MIB


@pytest.fixture
def pages() -> memoryview:
    """Whole parts, and one that ends within a page."""
    memory = mmap.mmap(-1, 4 * PART)
    memory[:] = os.urandom(4 * PART)
    return memoryview(memory)[: 3 * PART + MIB + 4097]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", settings=StoreSettings(single_put_bytes=MIB, request_bytes=PART))


def parts(body: memoryview, first: int = 0) -> Iterator[memoryview]:
    for start in range(first, body.nbytes, PART):
        yield body[start : start + PART]


def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each part that went past the page cache."""
    found: list[int] = []
    write = FileUpload._write_directly
    monkeypatch.setattr(FileUpload, "_write_directly", lambda self, view: found.append(write(self, view)) or found[-1])
    return found


def has_direct_writes(folder: Path) -> bool:
    """Whether the file system of the tests takes a page past its cache."""
    try:
        handle = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        return os.write(handle, mmap.mmap(-1, mmap.PAGESIZE)) == mmap.PAGESIZE
    except OSError:
        return False
    finally:
        os.close(handle)


def test_pages_are_written_and_the_rest_after_them(
    store: Store, pages: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = used(monkeypatch)
    info = store.publish("a", parts(pages))
    assert store.read("a") == bytes(pages)  # proven against the checksum too
    assert info.size == pages.nbytes
    assert direct == ([PART, PART, PART, MIB + 4096] if has_direct_writes(tmp_path) else [0, 0, 0, 0])


def test_memory_that_is_no_pages_is_written_as_ever(store: Store, pages: memoryview) -> None:
    store.publish("a", parts(pages, first=3))
    assert store.read("a") == bytes(pages[3:])


def test_parts_after_one_that_ends_within_a_page_are_written_as_ever(store: Store, pages: memoryview) -> None:
    store.publish("a", [pages[: PART + 8], *parts(pages[PART:])])
    assert store.read("a") == bytes(pages[: PART + 8]) + bytes(pages[PART:])


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_it_is_written_as_ever(
    store: Store, pages: memoryview, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    open_as_ever = os.open

    def without(path: str, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(refused, os.strerror(refused), path)
        return open_as_ever(path, flags, *more)

    direct = used(monkeypatch)
    monkeypatch.setattr(os, "open", without)
    store.publish("a", parts(pages))
    assert direct == [0, 0, 0, 0]
    assert store.read("a") == bytes(pages)


def read_past_the_cache(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read that passed the page cache by."""
    found: list[int] = []
    fill = direct.fill
    monkeypatch.setattr(direct, "fill", lambda *asked: found.append(fill(*asked)) or found[-1])
    return found


def forget(path: Path) -> bool:
    """Takes the file out of the page cache. Returns whether it is out: of a file system in memory nothing ever is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return not direct._is_cached(file.fileno(), 0, path.stat().st_size)


def in_buffers(memory: bytearray, sizes: list[int]) -> list[memoryview]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [memoryview(memory)[start : start + size] for start, size in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize("start", [0, 1, 4096, PART + 4095])
@pytest.mark.parametrize("to_the_end", [True, False])
def test_what_is_wanted_once_is_read_past_the_cache_and_left_out_of_it(
    store: Store, pages: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, to_the_end: bool
) -> None:
    store.publish("a", parts(pages))
    can_be_direct = forget(tmp_path / "a") and has_direct_writes(tmp_path)
    reads = read_past_the_cache(monkeypatch)
    size = pages.nbytes - start if to_the_end else 9 * MIB + 5
    for _ in range(2):
        memory = bytearray(size)
        store.read_into("a", start, in_buffers(memory, [7, size - 7 - 4097, 0, 4097]), once=True)
        assert memory == pages[start : start + size]
    assert reads == ([size, size] if can_be_direct else [0, 0])


def test_what_the_cache_has_is_taken_from_there(store: Store, pages: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(pages)
    reads = read_past_the_cache(monkeypatch)
    memory = bytearray(pages.nbytes)
    store.read_into("a", 0, [memoryview(memory)], once=True)
    assert memory == pages
    assert reads == [0]


def test_a_file_that_ends_too_early_is_told_however_it_is_read(store: Store, pages: memoryview, tmp_path: Path) -> None:
    store.publish("a", parts(pages))
    for end in (pages.nbytes - 1, 4 * MIB, 0):
        os.truncate(tmp_path / "a", end)
        forget(tmp_path / "a")
        with pytest.raises(OutOfRange, match=f"has {end} bytes, but bytes 10 to {pages.nbytes} were asked for"):
            store.read_into("a", 10, [memoryview(bytearray(pages.nbytes - 10))], once=True)


@pytest.mark.parametrize("refused_at", ["open", "preadv"])
def test_a_file_system_without_it_is_read_as_ever(
    store: Store, pages: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_at: str
) -> None:
    store.publish("a", parts(pages))
    forget(tmp_path / "a")
    as_ever = getattr(os, refused_at)

    def without(first: Any, second: Any, *more: Any) -> Any:
        flags = second if refused_at == "open" else fcntl.fcntl(first, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return as_ever(first, second, *more)

    reads = read_past_the_cache(monkeypatch)
    monkeypatch.setattr(os, refused_at, without)
    memory = bytearray(pages.nbytes)
    store.read_into("a", 0, [memoryview(memory)], once=True)
    assert memory == pages
    assert reads == [0]


def test_a_file_that_cannot_be_mapped_is_read_as_ever(
    store: Store, pages: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("a", parts(pages))
    forget(tmp_path / "a")
    reads, as_ever = read_past_the_cache(monkeypatch), mmap.mmap

    def without(descriptor: int, *more: Any, **named: Any) -> mmap.mmap:
        if descriptor >= 0:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return as_ever(descriptor, *more, **named)

    monkeypatch.setattr(mmap, "mmap", without)
    memory = bytearray(pages.nbytes)
    store.read_into("a", 0, [memoryview(memory)], once=True)
    assert memory == pages
    assert reads == [0]


def test_no_descriptor_is_left_whatever_happens(store: Store, pages: memoryview) -> None:
    def breaks() -> Iterator[memoryview]:
        yield from parts(pages)
        raise ValueError("the caller's")

    store.publish("a", parts(pages))
    before = len(os.listdir("/proc/self/fd"))
    store.publish("b", parts(pages))
    with pytest.raises(ValueError, match="the caller's"):
        store.publish("c", breaks())
    assert len(os.listdir("/proc/self/fd")) == before
