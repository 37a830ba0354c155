"""memory://: for unit tests only. One dictionary of this process (fsspec's), with conditional creation under a lock."""

import threading
import uuid
from typing import Any

from stagecoach.storage.backends import Download, ObjectInfo, Page
from stagecoach.storage.errors import NotFound
from stagecoach.storage.retry import Gate
from stagecoach.storage.settings import StoreSettings

_lock = threading.RLock()
_facts: dict[str, tuple[str, str]] = {}  # path: (etag, checksum)


class MemoryBackend:
    """Paths are 'folder/key', shared by all stores of the process."""

    def __init__(self, settings: StoreSettings, gate: Gate) -> None:
        self.settings, self.gate = settings, gate

    @property
    def fs(self) -> Any:
        from fsspec.implementations.memory import MemoryFileSystem

        return MemoryFileSystem()

    def uri(self, path: str) -> str:
        return f"memory://{path}"

    def download(self, download: Download) -> None:
        with _lock:
            info = self.stat(download.path)
            download.describe(etag=info.etag, size=info.size, checksum=info.checksum, shown=self.uri(download.path))
            stop = download.position + download.missing
            download.body += self.fs.cat_file("/" + download.path, start=download.position, end=stop)

    def stat(self, path: str) -> ObjectInfo:
        with _lock:
            if not self.fs.isfile("/" + path):
                raise NotFound(f"{self.uri(path)} does not exist")
            return self._info(path, self.fs.size("/" + path))

    def list_page(self, path: str, *, recursive: bool, token: str | None) -> Page:
        with _lock:
            below = path + "/" if path else ""
            found = {name.lstrip("/"): facts["size"] for name, facts in self.fs.find("/" + path, detail=True).items()}
            names = [name for name in found if name.startswith(below)]
            if recursive:
                return Page(objects=[self._info(name, found[name]) for name in names])
            return Page(folders=[below + name[len(below) :].split("/")[0] for name in names if "/" in name[len(below) :]])

    def put(self, path: str, body: bytes, checksum: str) -> ObjectInfo:
        with _lock:
            self.fs.pipe_file("/" + path, body)
            _facts[path] = (uuid.uuid4().hex, checksum)
            return self._info(path, len(body))

    def open_upload(self, path: str) -> "MemoryUpload":
        return MemoryUpload(self, path)

    def put_if_absent(self, path: str, body: bytes, checksum: str, nonce: str) -> bool:
        with _lock:
            if self.fs.exists("/" + path):
                return False
            self.put(path, body, checksum)
            return True

    def delete(self, path: str) -> None:
        with _lock:
            _facts.pop(path, None)
            if self.fs.isfile("/" + path):
                self.fs.rm_file("/" + path)

    def sweep(self, path: str, older_than_s: float) -> int:
        return 0

    def _info(self, path: str, size: int) -> ObjectInfo:
        etag, checksum = _facts.get(path, ("", None))
        return ObjectInfo(key=path, size=size, etag=etag, checksum=checksum)


class MemoryUpload:
    """Parts kept aside until finish."""

    is_parallel = True

    def __init__(self, backend: MemoryBackend, path: str) -> None:
        self.backend, self.path = backend, path
        self.bodies: dict[int, bytes] = {}

    def start(self) -> None:
        self.bodies.clear()

    def part(self, number: int, body: bytes | memoryview) -> None:
        self.bodies[number] = bytes(body)

    def finish(self, checksum: str) -> ObjectInfo:
        return self.backend.put(self.path, b"".join(self.bodies[number] for number in sorted(self.bodies)), checksum)

    def abort(self) -> None:
        self.bodies.clear()
