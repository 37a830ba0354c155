"""Google and Azure object stores, through whatever fsspec offers: their file systems know an exclusive create (`pipe_file(mode="create")`).

What fsspec does not offer is missing here too, and said: no stored checksum, no resumed upload, and a lost reply to a conditional
create stays unknown (StoreUnavailable) because there is no place for a nonce. Schemes without an exclusive create are refused.
"""

import importlib
from typing import Any

from stagecoach.storage.backends import Download, ObjectInfo, Page
from stagecoach.storage.errors import AccessDenied, NotFound, StoreMisconfigured, StoreUnavailable
from stagecoach.storage.retry import Gate, Transient
from stagecoach.storage.settings import StoreSettings

PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


def open_generic(scheme: str, uri: str, settings: StoreSettings, gate: Gate) -> "GenericBackend":
    """Raises StoreMisconfigured when the package for the scheme is not installed, or the scheme has no exclusive create."""
    package = PACKAGES.get(scheme)
    if package is None:
        raise StoreMisconfigured(
            f"{uri}: {scheme}:// has no conditional create that Stagecoach knows, so two writers could both win; use s3://"
        )
    try:
        importlib.import_module(package)
    except ImportError:
        raise StoreMisconfigured(f"{uri}: {scheme}:// needs the package '{package}'; pip install {package}") from None
    import fsspec

    return GenericBackend(scheme, fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False), settings, gate)


class GenericBackend:
    """Paths are 'bucket/key'. `fs` is any fsspec file system whose pipe_file knows mode="create"."""

    def __init__(self, scheme: str, fs: Any, settings: StoreSettings, gate: Gate) -> None:
        self.scheme, self.fs, self.settings, self.gate = scheme, fs, settings, gate

    def __reduce__(self) -> tuple[Any, tuple[str, str, StoreSettings, Gate]]:
        return open_generic, (self.scheme, f"{self.scheme}://", self.settings, self.gate)

    def uri(self, path: str) -> str:
        return f"{self.scheme}://{path}"

    def download(self, download: Download) -> None:
        info = self.stat(download.path)
        download.describe(etag=info.etag, size=info.size, checksum=None, shown=self.uri(download.path))
        if download.missing:
            start, stop = download.position, download.position + download.missing
            download.body += self._run("read", download.path, self.fs.cat_file, download.path, start=start, end=stop)

    def stat(self, path: str) -> ObjectInfo:
        facts = self._run("look at", path, self.fs.info, path)
        if facts["type"] != "file":
            raise NotFound(f"{self.uri(path)} does not exist")
        return self._info(path, facts)

    def list_page(self, path: str, *, recursive: bool, token: str | None) -> Page:
        try:
            found = self._run("list", path, self.fs.find, path, detail=True)
        except NotFound:
            return Page()
        below = path + "/"
        if recursive:
            return Page(objects=[self._info(name, facts) for name, facts in found.items() if name.startswith(below)])
        return Page(folders=[below + name[len(below) :].split("/")[0] for name in found if "/" in name[len(below) :]])

    def put(self, path: str, body: bytes, checksum: str) -> ObjectInfo:
        self._run("write", path, self.fs.pipe_file, path, body)
        return self.stat(path)

    def open_upload(self, path: str) -> "GenericUpload":
        return GenericUpload(self, path)

    def put_if_absent(self, path: str, body: bytes, checksum: str, nonce: str) -> bool:
        try:
            self._run("create", path, self.fs.pipe_file, path, body, mode="create")
        except FileExistsError:
            return False
        except Transient as failure:
            raise StoreUnavailable(f"{self.uri(path)}: no answer to its creation ({failure}); read it to see whether it is there") from None
        return True

    def delete(self, path: str) -> None:
        try:
            self._run("delete", path, self.fs.rm_file, path)
        except NotFound:
            return

    def sweep(self, path: str, older_than_s: float) -> int:
        return 0

    def _run(self, verb: str, path: str, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except FileExistsError:
            raise
        except FileNotFoundError:
            raise NotFound(f"{self.uri(path)} does not exist") from None
        except PermissionError as error:
            raise AccessDenied(f"{self.uri(path)}: may not {verb} ({error}); allow it for these credentials. Not tried again.") from None
        except (OSError, TimeoutError) as error:
            raise Transient("refused", f"{type(error).__name__}: {error}") from error

    def _info(self, path: str, facts: Any) -> ObjectInfo:
        etag = facts.get("ETag") or facts.get("etag") or facts.get("generation") or facts.get("md5Hash") or facts.get("LastModified") or ""
        return ObjectInfo(key=path, size=int(facts["size"]), etag=str(etag).strip('"'))


class GenericUpload:
    """fsspec's own buffered writer: it publishes on commit and never before."""

    is_parallel = False

    def __init__(self, backend: GenericBackend, path: str) -> None:
        self.backend, self.path = backend, path
        self.file: Any = None

    def start(self) -> None:
        self.file = self.backend._run("write", self.path, self.backend.fs.open, self.path, "wb", autocommit=False)

    def part(self, number: int, body: bytes | memoryview) -> None:
        try:
            self.file.write(body)
        except OSError as error:  # the writer's buffer cannot be sent twice
            raise StoreUnavailable(f"{self.backend.uri(self.path)}: the upload broke ({error}); start again") from error

    def finish(self, checksum: str) -> ObjectInfo:
        try:
            self.file.close()
            self.file.commit()
        except OSError as error:
            raise StoreUnavailable(f"{self.backend.uri(self.path)}: the upload could not be completed ({error}); start again") from error
        return self.backend.stat(self.path)

    def abort(self) -> None:
        if self.file is not None:
            self.file.discard()
            self.file.closed = True  # or its finaliser uploads what was just discarded
