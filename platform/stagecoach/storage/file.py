"""file://: a body is written to a hidden temporary file beside its place, synced, and renamed (or linked) into it.

The temporary names start with `.stagecoach-tmp-`: never listed, never a valid key, harmless after a kill, removed by `sweep`.
The stored checksum is an extended attribute of the file, where the file system has those: `user.stagecoach.xxh3-128` of one block,
`user.stagecoach.xxh3-128-blocks` of more (`digest.py`).
"""

import contextlib
import ctypes
import errno
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

from stagecoach.storage.backends import Download, ObjectInfo, Page, changed
from stagecoach.storage.digest import checksum_name
from stagecoach.storage.errors import AccessDenied, NotFound, OutOfRange, StoreMisconfigured, StoreUnavailable
from stagecoach.storage.retry import Gate
from stagecoach.storage.settings import StoreSettings
from stagecoach.storage.uris import TEMPORARY_PREFIX

_NO_ATTRIBUTES = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOSPC, errno.ERANGE}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
BUFFERS_AT_ONCE = 1024  # IOV_MAX of Linux
SYNC_FILE_RANGE_WRITE = 2
DIRECT_ALIGNMENT = 4096  # of places in a file written past the page cache; what a disk asks of memory, the kernel says
DIRECT_BYTES = 1 << 20  # smaller parts gain nothing
_NOT_DIRECT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
MKDIR_TRIES = 10  # a folder may be removed as empty between making it and writing into it


class FileBackend:
    """Paths are absolute paths of the machine. Bytes go through fsspec's local file system."""

    def __init__(self, settings: StoreSettings, gate: Gate) -> None:
        self.settings, self.gate = settings, gate
        self._fs: Any = None

    def __reduce__(self) -> tuple[type["FileBackend"], tuple[StoreSettings, Gate]]:
        return FileBackend, (self.settings, self.gate)

    @property
    def fs(self) -> Any:
        if self._fs is None:
            from fsspec.implementations.local import LocalFileSystem

            self._fs = LocalFileSystem(auto_mkdir=False, skip_instance_cache=True)
        return self._fs

    def uri(self, path: str) -> str:
        return f"file://{path}"

    def download(self, download: Download) -> None:
        with self._errors("read", download.path), self.fs.open(download.path, "rb") as file:
            facts = os.fstat(file.fileno())
            etag = _etag(facts)
            if download.if_match is not None and etag != download.if_match:
                raise changed(self.uri(download.path), download.if_match, etag)
            download.describe(
                etag=etag, size=facts.st_size, checksum=_read_checksum(file.fileno(), facts.st_size), shown=self.uri(download.path)
            )
            file.seek(download.position)
            download.body += file.read(download.missing)

    def fill(self, path: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Straight from the page cache into the caller's memory."""
        stop = start + sum(buffer.nbytes for buffer in buffers)
        with self._errors("read", path), open(path, "rb", buffering=0) as file:
            _read_ahead(file.fileno(), start, stop)
            left, at = deque(buffer for buffer in buffers if buffer.nbytes), start
            while left:
                got = os.preadv(file.fileno(), list(islice(left, BUFFERS_AT_ONCE)), at)
                if not got:
                    size = os.fstat(file.fileno()).st_size
                    raise OutOfRange(f"{self.uri(path)} has {size} bytes, but bytes {start} to {stop} were asked for")
                at += got
                while left and got >= left[0].nbytes:
                    got -= left.popleft().nbytes
                if got:
                    left[0] = left[0][got:]

    def stat(self, path: str) -> ObjectInfo:
        with self._errors("read", path):
            facts = os.stat(path)
            if not os.path.isfile(path):
                raise FileNotFoundError(errno.ENOENT, "is a folder", path)
            return ObjectInfo(key=path, size=facts.st_size, etag=_etag(facts), checksum=_read_checksum(path, facts.st_size))

    def list_page(self, path: str, *, recursive: bool, token: str | None) -> Page:
        with self._errors("list", path):
            if recursive:
                return Page(objects=list(self._walk(path)))
            folders = [entry.path for entry in _entries(path) if entry.is_dir() and next(self._walk(entry.path), None)]
            return Page(folders=folders)

    def _walk(self, path: str) -> Iterator[ObjectInfo]:
        for entry in _entries(path):
            if entry.is_dir():
                yield from self._walk(entry.path)
            else:
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted while we look
                    facts = entry.stat()
                    checksum = _read_checksum(entry.path, facts.st_size)
                    yield ObjectInfo(key=entry.path, size=facts.st_size, etag=_etag(facts), checksum=checksum)

    def put(self, path: str, body: bytes, checksum: str) -> ObjectInfo:
        upload = FileUpload(self, path)
        try:
            upload.start()
            upload.part(1, body)
            return upload.finish(checksum)
        except BaseException:
            upload.abort()
            raise

    def open_upload(self, path: str) -> "FileUpload":
        return FileUpload(self, path)

    def put_if_absent(self, path: str, body: bytes, checksum: str, nonce: str) -> bool:
        if os.path.lexists(path):
            return False
        upload = FileUpload(self, path)
        try:
            upload.start()
            upload.part(1, body)
            return upload.finish_if_absent(checksum)
        finally:
            upload.abort()

    def delete(self, path: str) -> None:
        with self._errors("delete", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.fs.rm_file(path)
            self.sync_folder(os.path.dirname(path))

    def sweep(self, path: str, older_than_s: float) -> int:
        """Removes temporary files whose last write is older. Their age is the file system's own clock against itself."""
        removed, now = 0, time.time()
        for folder, _, names in os.walk(path):
            for name in names:
                leftover = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    if name.startswith(TEMPORARY_PREFIX) and now - os.stat(leftover).st_mtime >= older_than_s:
                        os.unlink(leftover)
                        removed += 1
        return removed

    def open_temporary(self, path: str) -> tuple[str, Any]:
        """A new file beside `path`. Makes the folder; it may vanish again under us when somebody clears empty ones."""
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}")
        for _ in range(MKDIR_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                os.makedirs(folder, exist_ok=True)
                return temporary, self.fs.open(temporary, "wb")
        os.makedirs(folder, exist_ok=True)
        return temporary, self.fs.open(temporary, "wb")

    def sync_folder(self, folder: str) -> None:
        """A rename is only durable once its folder is."""
        if not self.settings.fsync:
            return
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(verb, path, error) from error

    def _translate(self, verb: str, path: str, error: OSError) -> Exception:
        uri, why = self.uri(path), error.strerror or str(error)
        if verb == "write" and error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
            return StoreMisconfigured(
                f"{uri}: cannot be written, because a folder and a file want the same name ({why}); choose another key"
            )
        if verb == "write" and error.errno == errno.ENOENT:
            return StoreMisconfigured(f"{uri}: its folder cannot be made ({why}); choose another root")
        if error.errno in (*_ABSENT, errno.EISDIR):
            return NotFound(f"{uri} does not exist")
        if error.errno in _FORBIDDEN:
            return AccessDenied(
                f"{uri}: may not {verb} as user {os.geteuid()} ({why}); change the folder's owner or mode, or choose another root"
            )
        if error.errno == errno.ENAMETOOLONG:
            return StoreMisconfigured(f"{uri}: the file system takes no name as long as this; choose a shorter key")
        return StoreUnavailable(f"{uri}: could not {verb} ({why}). Check space, quota and health of the file system, then start again.")


class FileUpload:
    """One temporary file on its way to a name.

    Large parts that come in whole pages of memory, as a checkpoint's do, go to the disk from where they lie (O_DIRECT, where there is
    such): a copy in the page cache costs ten times the CPU, which is training's, and pushes out what somebody reads.
    """

    is_parallel = False

    def __init__(self, backend: FileBackend, path: str) -> None:
        self.backend, self.path = backend, path
        self.temporary = ""
        self.file: Any = None
        self.direct = -1  # a second descriptor of it; -1: not yet, or not here
        self.is_direct = backend.settings.fsync and hasattr(os, "O_DIRECT")
        self.written = 0

    def start(self) -> None:
        with self.backend._errors("write", self.path):
            self.temporary, self.file = self.backend.open_temporary(self.path)

    def part(self, number: int, body: bytes | memoryview) -> None:
        with self.backend._errors("write", self.path), memoryview(body) as view:
            done = self._write_directly(view)
            if done < view.nbytes:
                _write_all(self.file.fileno(), view[done:], self.written + done)
                if self.backend.settings.fsync:
                    _start_writing_back(self.file.fileno(), self.written + done, view.nbytes - done)
            self.written += view.nbytes

    def finish(self, checksum: str) -> ObjectInfo:
        with self.backend._errors("write", self.path):
            facts = self._close(checksum)
            os.replace(self.temporary, self.path)
            self.temporary = ""
            self.backend.sync_folder(os.path.dirname(self.path))
            return ObjectInfo(key=self.path, size=facts.st_size, etag=_etag(facts), checksum=checksum)

    def finish_if_absent(self, checksum: str) -> bool:
        """A hard link appears whole or not at all, and for one caller only."""
        with self.backend._errors("write", self.path):
            self._close(checksum)
            try:
                os.link(self.temporary, self.path)
            except FileExistsError:
                return os.stat(self.temporary).st_nlink == 2  # NFS: the reply to our own link was lost and it was sent again
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                    raise StoreMisconfigured(
                        f"{self.backend.uri(self.path)}: this file system has no hard links ({error.strerror}), without which two writers "
                        "cannot be told apart; put the root on another file system"
                    ) from error
                raise
            self.backend.sync_folder(os.path.dirname(self.path))
            return True

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._close_direct()
        with contextlib.suppress(OSError):
            if self.file is not None:
                self.file.close()
        with contextlib.suppress(OSError):
            if self.temporary:
                os.unlink(self.temporary)

    def _write_directly(self, view: memoryview) -> int:
        """Writes whole pages from the start of `view` past the page cache. Returns how many bytes: 0 where that cannot be."""
        size = view.nbytes - view.nbytes % DIRECT_ALIGNMENT
        if not self.is_direct or size < DIRECT_BYTES or self.written % DIRECT_ALIGNMENT:
            return 0
        try:
            if self.direct < 0:
                self.direct = os.open(self.temporary, os.O_WRONLY | os.O_DIRECT)
            _write_all(self.direct, view[:size], self.written)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            self.is_direct = False  # the file system or this memory cannot: nor will the next part
            return 0
        return size

    def _close_direct(self) -> None:
        if self.direct >= 0:
            os.close(self.direct)
        self.direct = -1

    def _close(self, checksum: str) -> os.stat_result:
        self._close_direct()
        try:
            os.setxattr(self.file.fileno(), _attribute(self.written), checksum.encode())
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTES:
                raise
        if self.backend.settings.fsync:
            os.fsync(self.file.fileno())
        facts = os.fstat(self.file.fileno())
        self.file.close()
        return facts


def _entries(path: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not entry.name.startswith(TEMPORARY_PREFIX)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write_all(descriptor: int, view: memoryview, at: int) -> None:
    """A write may be cut short where a disk fills up; what follows says why."""
    while view.nbytes:
        written = os.pwrite(descriptor, view, at)
        at, view = at + written, view[written:]


def _read_ahead(descriptor: int, start: int, stop: int) -> None:
    """The disk begins with all of it: left alone, most kernels ask for an eighth of a megabyte at a time. A hint: nobody depends on it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)


def _start_writing_back(descriptor: int, start: int, size: int) -> None:
    """The disk begins with what was just written, so that fsync finds little left to wait for. A hint: nobody depends on it."""
    if _sync_file_range() is not None:
        _sync_file_range()(descriptor, start, size, SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    """Linux's call, which Python does not have; None elsewhere."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def _etag(facts: os.stat_result) -> str:
    """Every publish makes a new inode, so this changes with every body."""
    return f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"


def _attribute(size: int) -> str:
    return f"user.stagecoach.{checksum_name(size)}"


def _read_checksum(file: int | str, size: int) -> str | None:
    try:
        return os.getxattr(file, _attribute(size)).decode()
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES or error.errno in _ABSENT:
            return None
        raise
