"""Multipart uploads: invisible until completed, aborted when anything goes wrong."""

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stagecoach.errors import StorageError
from stagecoach.storage.backends import ObjectInfo
from stagecoach.storage.digest import checksum_name
from stagecoach.storage.retry import Transient
from stagecoach.storage.s3_connection import ask

if TYPE_CHECKING:
    from stagecoach.storage.s3 import S3Backend

NONCE_NAME, CHECKSUM_PLACE = "stagecoach-nonce", "stagecoach-xxh3-128"
TAGGED = "in-tag"  # the value at CHECKSUM_PLACE when the checksum was not known yet


def name_of_checksum(size: int) -> str:
    """Of an object of this size: in its metadata, or among the tags of a multipart body."""
    return f"stagecoach-{checksum_name(size)}"


def stored_checksum(metadata: dict[str, str], size: int) -> str | None:
    """What the metadata of an object say; TAGGED where its tags know."""
    return TAGGED if metadata.get(CHECKSUM_PLACE) == TAGGED else metadata.get(name_of_checksum(size))


class S3Upload:
    """One multipart upload. Its parts may be sent again and at once."""

    is_parallel = True

    def __init__(self, backend: "S3Backend", path: str) -> None:
        self.backend, self.path = backend, path
        self.bucket, _, self.key = path.partition("/")
        self.upload_id: str | None = None
        self.sizes: dict[int, int] = {}
        self.etags: dict[int, str] = {}

    def _run(self, method: str, verb: str, **arguments: Any) -> Any:
        def request(fs: Any) -> Any:
            return ask(fs, method, Bucket=self.bucket, Key=self.key, **arguments)

        return self.backend.run(request, verb, self.path, timeout_s=self.backend.settings.attempt_timeout_s)

    def start(self) -> None:
        reply = self._run("create_multipart_upload", "PutObject", Metadata={CHECKSUM_PLACE: TAGGED})
        self.upload_id = reply["UploadId"]

    def part(self, number: int, body: bytes | memoryview) -> None:
        reply = self._run("upload_part", "PutObject", UploadId=self.upload_id, PartNumber=number, Body=bytes(body))
        self.sizes[number], self.etags[number] = len(body), reply["ETag"]

    def finish(self, checksum: str) -> ObjectInfo:
        """Completes, then stores the digest. Sent again after a lost reply, a completed upload is recognised by its ETag."""
        parts = [{"PartNumber": number, "ETag": self.etags[number]} for number in sorted(self.etags)]
        size = sum(self.sizes.values())
        try:
            reply = self._run("complete_multipart_upload", "PutObject", UploadId=self.upload_id, MultipartUpload={"Parts": parts})
            etag = reply["ETag"].strip('"')
        except Transient as failure:
            etag = self._completed_etag(size, len(parts))
            if etag is None:
                raise failure from None
        self.upload_id = None
        self._store_checksum(etag, checksum, size)
        return ObjectInfo(key=self.path, size=size, etag=etag, checksum=checksum)

    def _completed_etag(self, size: int, parts: int) -> str | None:
        """S3's ETag of a multipart body is the MD5 over its parts' MD5s and their number: known before it is completed."""
        import hashlib

        with contextlib.suppress(ValueError, StorageError):
            digests = b"".join(bytes.fromhex(self.etags[number].strip('"')) for number in sorted(self.etags))
            expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{parts}"
            info = self.backend.stat(self.path)
            if info.size == size and info.etag == expected:
                return expected
        return None

    def _store_checksum(self, etag: str, checksum: str, size: int) -> None:
        tags = {"TagSet": [{"Key": name_of_checksum(size), "Value": checksum}, {"Key": "stagecoach-etag", "Value": etag}]}
        try:
            self._run("put_object_tagging", "PutObjectTagging", Tagging=tags)
        except StorageError as refused:
            from loguru import logger

            # The body is published; only its stored checksum is missing, and `stat` says None.
            logger.warning("{}: no checksum stored with a large object: {}", self.backend.uri(self.path), refused)

    def abort(self) -> None:
        if self.upload_id is None:
            return
        with contextlib.suppress(Exception):
            self._run("abort_multipart_upload", "AbortMultipartUpload", UploadId=self.upload_id)


def tagged_checksum(backend: "S3Backend", info: ObjectInfo) -> ObjectInfo:
    """Fills in the digest of a multipart body from its tag, if the tag was written for this very body."""
    bucket, _, key = info.key.partition("/")
    try:
        reply = backend.run(lambda fs: ask(fs, "get_object_tagging", Bucket=bucket, Key=key), "GetObjectTagging", info.key)
    except StorageError:
        return replace(info, checksum=None)
    tags = {tag["Key"]: tag["Value"] for tag in reply["TagSet"]}
    return replace(info, checksum=tags.get(name_of_checksum(info.size)) if tags.get("stagecoach-etag") == info.etag else None)


def abort_stale_uploads(backend: "S3Backend", path: str, older_than_s: float) -> int:
    """Age by the server's own dates: of the upload's start and of its answer."""
    bucket, _, folder = path.partition("/")
    prefix = folder + "/" if folder else ""
    reply = backend.run(lambda fs: ask(fs, "list_multipart_uploads", Bucket=bucket, Prefix=prefix), "ListBucketMultipartUploads", path)
    now, aborted = _server_time(reply), 0
    for upload in reply.get("Uploads", ()):
        if upload["Key"].startswith(prefix) and now - upload["Initiated"].timestamp() >= older_than_s:
            _abort(backend, bucket, upload["Key"], upload["UploadId"])
            aborted += 1
    return aborted


def _abort(backend: "S3Backend", bucket: str, key: str, upload_id: str) -> None:
    def request(fs: Any) -> Any:
        return ask(fs, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)

    backend.run(request, "AbortMultipartUpload", f"{bucket}/{key}")


def _server_time(reply: Any) -> float:
    import email.utils

    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    return email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
