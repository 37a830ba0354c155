"""One s3fs file system per process and endpoint, with every retry inside it turned off, and its credentials refreshed once."""

import asyncio
import concurrent.futures
import functools
import hashlib
import os
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stagecoach.redaction import hide_environment, redact
from stagecoach.storage.errors import AccessDenied, StoreMisconfigured
from stagecoach.storage.retry import Gate
from stagecoach.storage.s3_errors import Expired, Redirected, translate
from stagecoach.storage.settings import StoreSettings

T = TypeVar("T")
Request = Callable[[Any], Awaitable[T]]  # takes the s3fs file system

_REDIRECTS = (301, 302, 303, 307, 308)
_connections: dict[tuple[object, ...], "Connection"] = {}
_lock = threading.Lock()


async def ask(fs: Any, operation: str, **arguments: Any) -> Any:
    """One request through s3fs's client; not through s3fs's `_call_s3`, which sleeps after a refusal even when told not to retry."""
    client = await fs.set_session()
    return await getattr(client, operation)(**arguments)


def connect(settings: StoreSettings, gate: Gate) -> "Connection":
    """Stores with the same settings, clock and AWS_* environment share connections and the record of the store's health."""
    environment = repr(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    key = (os.getpid(), settings, type(gate.clock), hashlib.sha256(environment.encode()).hexdigest())
    if type(gate.clock).__module__ != "stagecoach.storage.settings":
        return Connection(settings, gate)  # a test's own clock
    with _lock:
        if key not in _connections:
            _connections[key] = Connection(settings, gate)
        return _connections[key]


class Connection:
    """Runs requests on fsspec's event loop from any thread."""

    def __init__(self, settings: StoreSettings, gate: Gate) -> None:
        self.settings, self.gate = settings, gate
        self._fs: Any = None
        self._lock = threading.Lock()
        self._generation = 0

    def run(self, request: Request[T], *, verb: str, bucket: str, key: str, timeout_s: float | None = None) -> T:
        """One request. Raises Transient, an internal signal of s3_errors, or one of storage's errors."""
        generation = self._generation
        try:
            return self._run_once(request, verb, bucket, key, timeout_s)
        except Expired:
            self._refresh(generation)
        try:
            return self._run_once(request, verb, bucket, key, timeout_s)
        except Expired as expired:
            raise _still_expired(expired, verb, bucket, key) from None

    def _run_once(self, request: Request[T], verb: str, bucket: str, key: str, timeout_s: float | None) -> T:
        try:
            return self._await(request, timeout_s)
        except Exception as error:
            translated = translate(error, verb=verb, bucket=bucket, key=key, settings=self.settings)
            if translated is error:
                raise
            raise translated from None  # the client's own traceback may quote headers and keys

    def _await(self, request: Request[T], timeout_s: float | None) -> T:
        fs = self.file_system()

        async def bounded() -> T:
            async with asyncio.timeout(timeout_s):
                return await request(fs)

        future = asyncio.run_coroutine_threadsafe(bounded(), fs.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise TimeoutError("the request was cancelled") from None
        except BaseException:
            future.cancel()
            raise

    def file_system(self) -> Any:
        with self._lock:
            if self._fs is None:
                self._fs = _build_file_system(self.settings)
            return self._fs

    def _refresh(self, seen: int) -> None:
        """Reads the credentials anew (environment, files, role), once however many calls found them expired."""
        with self._lock:
            if self._generation == seen:
                hide_environment()
                self._fs = _build_file_system(self.settings)  # requests under way keep the old one until they end
                self._generation += 1


def _still_expired(expired: Expired, verb: str, bucket: str, key: str) -> Exception:
    if str(expired).endswith(": 400"):
        return StoreMisconfigured(
            f"{verb} s3://{bucket}/{key}: the server answers 400 Bad Request; check the region (AWS_REGION) and the credentials"
        )
    return AccessDenied(
        f"{verb} s3://{bucket}/{key}: the session token has expired, and reading the credentials anew gave an expired one again; "
        "renew it where it comes from (AWS_SESSION_TOKEN, the credentials file, the role of the pod)"
    )


def _build_file_system(settings: StoreSettings) -> Any:
    """s3fs retries 5 times around a client that retries 5 times: both are told not to. Addresses stay plain for other people's servers."""
    import s3fs

    endpoint = checked_endpoint()
    config: dict[str, Any] = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "max_pool_connections": 2 * settings.concurrency,
        "response_checksum_validation": "when_required",  # we check XXH3-128 ourselves
        "http_session_cls": _sessions_without_redirects(),
    }
    if endpoint and "amazonaws.com" not in endpoint:
        config["s3"] = {"addressing_style": "path"}
    # botocore reads AWS_DEFAULT_REGION only; everything else that speaks to AWS reads AWS_REGION first.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    fs = s3fs.S3FileSystem(
        session=_session(),
        config_kwargs=config,
        client_kwargs={"region_name": region} if region else {},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


def checked_endpoint() -> str:
    """The server's address from the environment, "" for AWS. Raises StoreMisconfigured where no request could ever be sent to it."""
    name = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), "")
    if not name:
        return ""
    given = os.environ[name]
    try:
        parts = urlsplit(given)
        has_port_and_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_port_and_host = False
    if not has_port_and_host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or re.search(r"\s", given):
        raise StoreMisconfigured(f"{name}={redact(given)!r} is no valid address; write http://host:port or https://host")
    if "@" in parts.netloc:
        raise StoreMisconfigured(f"{name}={redact(given)!r} carries a user or password; credentials come from AWS_* variables or files")
    return given


def _session() -> Any:
    """A session that reads the credentials anew. All share what botocore knows of S3, or each would parse it for 0.1 s."""
    import aiobotocore.session

    session = aiobotocore.session.AioSession()
    session.register_component("data_loader", _service_models())
    return session


class _WithoutRedirects:
    """aiohttp's session as the client uses it, which follows redirects by itself: a store could send us to any address inside. The one
    redirect that is left to botocore says which region the bucket is in."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, *arguments: Any, **options: Any) -> Any:
        response = await self._session.request(*arguments, allow_redirects=False, **options)
        if response.status in _REDIRECTS and "x-amz-bucket-region" not in response.headers:
            response.release()
            raise Redirected(response.headers.get("Location", "nowhere"))
        return response


@functools.cache
def _sessions_without_redirects() -> Any:
    from aiobotocore.httpsession import AIOHTTPSession

    class Sessions(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> _WithoutRedirects:
            return _WithoutRedirects(await super()._get_session(proxy_url))

    return Sessions


@functools.cache
def _service_models() -> Any:
    from botocore.loaders import create_loader

    return create_loader()
