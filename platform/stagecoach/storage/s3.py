"""s3://: through s3fs's own client, because its file surface knows no If-None-Match with metadata, no If-Match, no resumed range.

Beside each body its user metadata carry its checksum (`stagecoach-xxh3-128`, of more than 8 MiB `stagecoach-xxh3-128-blocks`) and
`stagecoach-nonce` (who wrote it). A multipart body's checksum is known only when all of it has been sent, after the metadata: it goes
into an object tag together with the ETag it belongs to, so a tag that outlived its body is never believed.
"""

from typing import Any

from stagecoach.errors import StorageError
from stagecoach.storage.backends import Download, ObjectInfo, Page, changed
from stagecoach.storage.errors import NotFound, OutOfRange
from stagecoach.storage.hedge import Hedger, Received, receive
from stagecoach.storage.retry import Gate, Transient
from stagecoach.storage.s3_connection import Connection, Request, T, ask, connect
from stagecoach.storage.s3_errors import PreconditionFailed, RangeNotSatisfiable
from stagecoach.storage.s3_upload import (
    NONCE_NAME,
    TAGGED,
    S3Upload,
    abort_stale_uploads,
    name_of_checksum,
    stored_checksum,
    tagged_checksum,
)
from stagecoach.storage.settings import StoreSettings


class S3Backend:
    """Paths are 'bucket/key'."""

    def __init__(self, settings: StoreSettings, gate: Gate) -> None:
        self.connection: Connection = connect(settings, gate)
        self.settings, self.gate = settings, self.connection.gate
        self.hedger = Hedger(enabled=settings.hedge)

    def __reduce__(self) -> tuple[type["S3Backend"], tuple[StoreSettings, Gate]]:
        return S3Backend, (self.settings, self.gate)

    def uri(self, path: str) -> str:
        return f"s3://{path}"

    def run(self, request: Request[T], verb: str, path: str, *, timeout_s: float | None = None) -> T:
        bucket, key = split(path)
        return self.connection.run(request, verb=verb, bucket=bucket, key=key, timeout_s=timeout_s)

    def download(self, download: Download) -> None:
        if not download.is_complete:
            self._receive(download)
        if download.checksum == TAGGED:  # of a whole multipart body: one more small request for its digest
            info = ObjectInfo(key=download.path, size=download.size or 0, etag=download.etag or "")
            download.checksum = tagged_checksum(self, info).checksum if download.stop is None else None

    def _receive(self, download: Download) -> None:
        parts = self._ask(download)
        for part in parts:
            if part.head is not None:
                self._take(download, part)
                break
        failure = parts[0].failure
        if failure is not None:
            raise failure
        if not download.is_complete:
            raise Transient("broken", f"the body ended {download.missing} bytes early")

    def _ask(self, download: Download) -> list[Received]:
        """One request, or two when the first is slow. The failure, if any, stands in the first."""
        bucket, key = split(download.path)
        wanted: dict[str, Any] = {"Bucket": bucket, "Key": key}
        etag = download.if_match or download.etag
        if etag is not None:
            wanted["IfMatch"] = _quoted(etag)
        if download.position or download.stop is not None:
            last = "" if download.stop is None else download.stop - 1
            wanted["Range"] = f"bytes={download.position}-{last}"
        is_short = download.stop is not None and download.stop - download.position <= self.settings.request_bytes
        collected: list[Received] = []
        try:
            self.run(lambda fs: receive(fs, wanted, collected, self.hedger if is_short else None), "GetObject", download.path)
        except PreconditionFailed:
            raise changed(self.uri(download.path), etag or "", None) from None
        except RangeNotSatisfiable:
            return [self._beyond_the_end(download)]
        except (Transient, StorageError) as failure:
            collected.sort(key=lambda part: -len(part.body))
            collected = collected or [Received()]
            collected[0].failure = failure
        return collected

    def _beyond_the_end(self, download: Download) -> Received:
        """416 is also the answer to the empty rest of an empty object."""
        info = self.stat(download.path)
        if info.size == 0 and download.stop is None:
            download.describe(etag=info.etag, size=0, checksum=info.checksum, shown=self.uri(download.path))
            return Received()
        return Received(
            failure=OutOfRange(f"{self.uri(download.path)} has {info.size} bytes, but bytes from {download.position} on were asked for")
        )

    def _take(self, download: Download, part: Received) -> None:
        head = part.head or {}
        whole = str(head["ContentRange"]).rpartition("/")[2] if head.get("ContentRange") else None
        size = int(whole) if whole is not None else int(head["ContentLength"])
        if whole is None and download.position:
            raise StorageError(f"{self.uri(download.path)}: the server ignores Range requests, so a broken read cannot be resumed")
        checksum, shown = stored_checksum(_metadata(head), size), self.uri(download.path)
        download.describe(etag=_plain(head["ETag"]), size=size, checksum=checksum, shown=shown)
        start = download.position if whole is None and download.start else 0
        download.body += part.body[start:]

    def stat(self, path: str) -> ObjectInfo:
        bucket, key = split(path)
        head = self.run(lambda fs: ask(fs, "head_object", Bucket=bucket, Key=key), "HeadObject", path)
        size = int(head["ContentLength"])
        info = ObjectInfo(key=path, size=size, etag=_plain(head["ETag"]), checksum=stored_checksum(_metadata(head), size))
        return tagged_checksum(self, info) if info.checksum == TAGGED else info

    def list_page(self, path: str, *, recursive: bool, token: str | None) -> Page:
        bucket, folder = split(path)
        wanted: dict[str, Any] = {"Bucket": bucket, "Prefix": folder + "/" if folder else ""}
        if not recursive:
            wanted["Delimiter"] = "/"
        if token:
            wanted["ContinuationToken"] = token
        reply = self.run(lambda fs: ask(fs, "list_objects_v2", **wanted), "ListBucket", path)
        objects = [
            ObjectInfo(key=f"{bucket}/{item['Key']}", size=int(item["Size"]), etag=_plain(item["ETag"]))
            for item in reply.get("Contents", ())
            if not item["Key"].endswith("/")  # a console's "folder"
        ]
        folders = [f"{bucket}/{item['Prefix'].rstrip('/')}" for item in reply.get("CommonPrefixes", ())]
        return Page(objects=objects, folders=folders, next_token=reply.get("NextContinuationToken") if reply.get("IsTruncated") else None)

    def put(self, path: str, body: bytes, checksum: str) -> ObjectInfo:
        reply = self._put(path, body, {name_of_checksum(len(body)): checksum})
        return ObjectInfo(key=path, size=len(body), etag=_plain(reply["ETag"]), checksum=checksum)

    def put_if_absent(self, path: str, body: bytes, checksum: str, nonce: str) -> bool:
        try:
            self._put(path, body, {name_of_checksum(len(body)): checksum, NONCE_NAME: nonce}, IfNoneMatch="*")
        except PreconditionFailed:
            return self._wrote(path, nonce)
        return True

    def _wrote(self, path: str, nonce: str) -> bool:
        """Whether the object that is there came from this very call: a PUT whose reply was lost, or that the client sent twice."""
        bucket, key = split(path)
        try:
            head = self.run(lambda fs: ask(fs, "head_object", Bucket=bucket, Key=key), "HeadObject", path)
        except NotFound:
            raise Transient("broken", "the object that stood in the way has just been deleted") from None
        return _metadata(head).get(NONCE_NAME) == nonce

    def _put(self, path: str, body: bytes, metadata: dict[str, str], **conditions: str) -> Any:
        bucket, key = split(path)
        timeout_s = self.settings.attempt_timeout_s

        def request(fs: Any) -> Any:
            return ask(fs, "put_object", Bucket=bucket, Key=key, Body=body, Metadata=metadata, **conditions)

        return self.run(request, "PutObject", path, timeout_s=timeout_s)

    def open_upload(self, path: str) -> S3Upload:
        return S3Upload(self, path)

    def delete(self, path: str) -> None:
        bucket, key = split(path)
        try:
            self.run(lambda fs: ask(fs, "delete_object", Bucket=bucket, Key=key), "DeleteObject", path)
        except NotFound:
            return

    def sweep(self, path: str, older_than_s: float) -> int:
        return abort_stale_uploads(self, path, older_than_s)


def split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _plain(etag: str) -> str:
    return etag.strip('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _metadata(head: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in (head.get("Metadata") or {}).items()}
