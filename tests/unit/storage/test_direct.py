"""file://: large bodies in whole pages of memory pass the page cache by, where disk and memory allow it; what is read is the same."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.storage import Store, StoreSettings, open_store
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
