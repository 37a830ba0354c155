"""The one way to bytes: a `Store` is bound to a root URI, keys below it are relative paths.

    store = open_store("s3://bucket/runs/r1")
    store.publish("plan.json", body)                      # all or nothing
    store.create_if_absent("attempts/1/start.json", body)  # True for exactly one caller
    store.read_ranges("shards/000.tar", [(512, 900), (4096, 77)])

Every call has a deadline and retries inside (`retry.py`); errors are those of `storage/errors.py`. A store may be used by many
threads and may be pickled to a spawned process. **Never fork after use**: connections and the event loop stay with the parent.
A store used in a fork raises UsedAfterFork; opening a new one there works.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from stagecoach.redaction import hide_environment, redact
from stagecoach.storage import digest
from stagecoach.storage.backends import Backend, Download, Filler, ObjectInfo, Page, changed
from stagecoach.storage.errors import NotFound, ObjectChanged, ObjectCorrupt, UriRefused, UsedAfterFork
from stagecoach.storage.ranges import Span, gather, plan_spans, scatter
from stagecoach.storage.retry import Gate, call
from stagecoach.storage.settings import Clock, StoreSettings, SystemClock
from stagecoach.storage.upload import Parts, send_parts
from stagecoach.storage.uris import DEFAULT_POLICY, UriPolicy, check_key, split_root

T = TypeVar("T")
List = list  # `Store.list` hides the built-in inside the class


def open_store(uri: str, *, policy: UriPolicy | None = None, settings: StoreSettings | None = None, clock: Clock | None = None) -> "Store":
    """Returns the store at `uri` ("s3://bucket/prefix", "file:///folder"). Touches neither network nor disk.

    Credentials, region and endpoint of S3 come from the environment (AWS_*). Raises UriRefused when the policy does not allow
    the URI. `clock` is for tests of patience.
    """
    hide_environment()
    (policy or DEFAULT_POLICY).check(uri)
    scheme, path = split_root(uri)
    if scheme in ("http", "https"):  # allowed to be named by data, but a web server has no conditional writes, and may redirect anywhere
        raise UriRefused(f"{redact(uri)}: a web address is not a store; copy the data to a bucket")
    settings = settings or StoreSettings()
    return Store(_build_backend(scheme, uri, settings, Gate(settings, clock or SystemClock())), path)


def _build_backend(scheme: str, uri: str, settings: StoreSettings, gate: Gate) -> Backend:
    """Backends are imported on use: fsspec and s3fs take longer to import than a command line may."""
    if scheme == "file":
        from stagecoach.storage.file import FileBackend

        return FileBackend(settings, gate)
    if scheme == "memory":
        from stagecoach.storage.memory import MemoryBackend

        return MemoryBackend(settings, gate)
    if scheme == "s3":
        from stagecoach.storage.s3 import S3Backend

        return S3Backend(settings, gate)
    from stagecoach.storage.generic import open_generic

    return open_generic(scheme, uri, settings, gate)


class Store:
    """Objects below a root URI. Thread-safe."""

    def __init__(self, backend: Backend, path: str) -> None:
        self._backend, self._path = backend, path
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Store({redact(self.uri)!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[Backend, str]]:
        return Store, (self._backend, self._path)

    @property
    def uri(self) -> str:
        """The root, without a slash at its end."""
        return self._backend.uri(self._path)

    @property
    def settings(self) -> StoreSettings:
        return self._backend.settings

    def child(self, key: str) -> "Store":
        """The store whose root is `key` below this one. It shares connections and the record of the store's health."""
        return Store(self._backend, self._join(check_key(key)))

    def uri_of(self, key: str) -> str:
        return self._backend.uri(self._join(check_key(key)))

    # Reading

    def read(self, key: str) -> bytes:
        """The whole body, checked against its stored checksum when it has one.

        A body that is cut off is resumed where it stopped. One that is replaced while being read is read again from its start.
        Raises NotFound; ObjectCorrupt when two complete reads do not match the stored checksum.
        """
        path = self._path_of(key)
        for is_last in (False, True):
            download = Download(path)
            try:
                self._fetch(download)
            except ObjectChanged:
                if is_last:
                    raise
                continue
            body = bytes(download.body)
            if download.checksum is None or digest.of_object(body) == download.checksum:
                return body
        raise ObjectCorrupt(
            f"{self.uri_of(key)}: its {len(body)} bytes have XXH3-128 {digest.of_object(body)}, but {download.checksum} was stored when it "
            "was published: the object is damaged; restore it or remove it"
        )

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]], *, if_match: str | None = None) -> List[bytes]:
        """The bytes of each (offset, length), in the order asked for.

        Near ranges travel in one request (settings.coalesce_gap_bytes), large ones in several at a time (settings.concurrency).
        All come from one version of the object: that of `if_match` (an ETag) when given. Raises NotFound, ObjectChanged, and
        OutOfRange when a range reaches past the end. Checksums of ranges are the caller's to know.
        """
        path = self._path_of(key)
        spans = plan_spans(ranges, gap_bytes=self.settings.coalesce_gap_bytes, request_bytes=self.settings.request_bytes)
        downloads = self._in_parallel([self._range_job(path, span, if_match) for span in spans])
        self._check_one_version(key, downloads)
        return gather(ranges, {span: bytes(download.body) for span, download in zip(spans, downloads, strict=True)})

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fills the writable `buffers` (of bytes), one after another, with the bytes from `start` on: `read_ranges` without a copy.

        Raises NotFound, ObjectChanged and OutOfRange; what the buffers hold then is unknown.
        """
        backend, path = self._backend, self._path_of(key)
        if isinstance(backend, Filler):
            self._call("reading", path, lambda: backend.fill(path, start, buffers))
            return
        [body] = self.read_ranges(key, [(start, sum(buffer.nbytes for buffer in buffers))])
        scatter(body, buffers)

    def stat(self, key: str) -> ObjectInfo:
        """Size, ETag and stored checksum. Raises NotFound."""
        path = self._path_of(key)
        return replace(self._call("looking at", path, lambda: self._backend.stat(path)), key=key)

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str = "") -> List[ObjectInfo]:
        """All objects below the folder `prefix`, sorted by key. Nothing there gives []. Always fresh, never from a cache."""
        found = (self._local(info) for page in self._pages(prefix, recursive=True) for info in page.objects)
        return sorted(found, key=lambda info: info.key)

    def list_folders(self, prefix: str = "") -> List[str]:
        """Names (one path part each) of the folders directly below `prefix` that hold at least one object, sorted."""
        return sorted({folder.rsplit("/", 1)[-1] for page in self._pages(prefix, recursive=False) for folder in page.folders})

    # Writing

    def publish(self, key: str, data: bytes | Iterable[bytes | memoryview]) -> ObjectInfo:
        """Writes the body so that a reader sees all of it or none, replacing what stood there; digests it on the way, by blocks.

        `data` may be an iterable of pieces of any size: large bodies go up in parts (several at a time) and are never held whole.
        It may be asked for its next piece by another thread. A piece that is a memoryview is not copied where that can be helped, so
        what it shows must not change before this returns.
        When anything raises, the iterable included, nothing is visible and no part is left behind.
        """
        path = self._path_of(key)
        parts = Parts((data,) if isinstance(data, bytes) else data, self.settings)
        body = parts.small_body()
        if body is None:
            info = self._publish_parts(path, parts)
        else:
            whole, checksum = body, parts.digest.hex()
            info = self._call("publishing", path, lambda: self._backend.put(path, whole, checksum))
        return replace(info, key=key, blocks=parts.digest.blocks)

    def create_if_absent(self, key: str, data: bytes) -> bool:
        """True for exactly one of any number of concurrent callers, False for all who find the key taken.

        The body carries a nonce of this call beside it (S3: in the user metadata of the same PUT; file: the temporary file *is*
        the object, told by its link count). When a reply is lost and the PUT is sent again, "it exists" is answered by reading
        that nonce back: ours means that our first PUT won. Raises StoreUnavailable when the deadline passes with the outcome
        unknown: then ask with `read`.
        """
        path, nonce, checksum = self._path_of(key), uuid.uuid4().hex, digest.of_object(data)
        return self._call("creating", path, lambda: self._backend.put_if_absent(path, data, checksum, nonce))

    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is fine."""
        path = self._path_of(key)
        self._call("deleting", path, lambda: self._backend.delete(path))

    def delete_prefix(self, prefix: str) -> int:
        """Removes every object below the folder `prefix`, in the order of their keys. Returns how many. Not atomic."""
        keys = [info.key for info in self.list(check_key(prefix))]
        self._in_parallel([_bind(self.delete, key) for key in keys])
        return len(keys)

    def sweep(self, prefix: str = "", *, older_than_s: float) -> int:
        """Removes what killed writers left below `prefix`: temporary files, unfinished multipart uploads. Returns how many.

        Leftovers are invisible to every reader, so this is about space only. Choose `older_than_s` longer than any upload takes.
        """
        path = self._join(check_key(prefix, empty_ok=True))
        self._check_process()
        return self._call("sweeping", path, lambda: self._backend.sweep(path, older_than_s))

    # Inside

    def _join(self, key: str) -> str:
        return f"{self._path}/{key}" if key and self._path else key or self._path

    def _path_of(self, key: str) -> str:
        self._check_process()
        return self._join(check_key(key))

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsedAfterFork(
                f"{self!r} was opened in process {self._pid} and used in its fork {os.getpid()}; open it again there, "
                "and start processes with the 'spawn' method once a store was used"
            )

    def _local(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=info.key[len(self._path) + 1 if self._path else 0 :])

    def _call(self, doing: str, path: str, attempt: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
        return call(self._backend.gate, f"{doing} {self._backend.uri(path)}", attempt, progress=progress)

    def _fetch(self, download: Download) -> Download:
        self._call("reading", download.path, lambda: self._backend.download(download), progress=lambda: len(download.body))
        return download

    def _range_job(self, path: str, span: Span, if_match: str | None) -> Callable[[], Download]:
        return lambda: self._fetch(Download(path, start=span.start, stop=span.stop, if_match=if_match))

    def _check_one_version(self, key: str, downloads: Sequence[Download]) -> None:
        etags = [download.etag or "" for download in downloads]
        for etag in etags[1:]:
            if etag != etags[0]:
                raise changed(self.uri_of(key), etags[0], etag)

    def _pages(self, prefix: str, *, recursive: bool) -> List[Page]:
        path, token, found = self._join(check_key(prefix, empty_ok=True)), None, []
        self._check_process()
        while True:
            page = self._call("listing", path, _bind(self._list_page, path, recursive, token))
            found.append(page)
            token = page.next_token
            if token is None:
                return found

    def _list_page(self, path: str, recursive: bool, token: str | None) -> Page:
        return self._backend.list_page(path, recursive=recursive, token=token)

    def _in_parallel(self, jobs: Sequence[Callable[[], T]]) -> List[T]:
        """Runs the jobs on a few threads; the first error stops those that have not begun, and is raised."""
        if len(jobs) <= 1:
            return [job() for job in jobs]
        futures = [self._threads().submit(job) for job in jobs]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="stagecoach-storage")
            return self._pool

    def _publish_parts(self, path: str, parts: Parts) -> ObjectInfo:
        upload = self._backend.open_upload(path)
        try:
            return send_parts(upload, parts, self._threads(), self.settings, lambda doing, attempt: self._call(doing, path, attempt))
        except BaseException:
            upload.abort()
            raise


def _bind(function: Callable[..., T], *arguments: object) -> Callable[[], T]:
    return lambda: function(*arguments)
