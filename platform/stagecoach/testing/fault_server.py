"""An S3 proxy that misbehaves on order: it stands before a real S3 server and refuses, resets, stalls or slows requests, and counts them.

    with FaultServer("http://127.0.0.1:9000") as server:
        server.faults.refuse_while = lambda: time.monotonic() < back_at      # 503 SlowDown
        ... AWS_ENDPOINT_URL_S3=server.url ...
        assert server.count() <= 3

Requests are passed on byte for byte with their Host header, so signatures stay valid.
"""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CHUNK_BYTES = 64 * 1024


@dataclass
class Faults:
    """What to do to requests. Everything may be changed while the server runs; `*_times` count down to 0.

    The faults of a body (`reset`, `cut`, `stall`) strike GETs whose body is longer than `*_after_bytes`.
    """

    refuse_while: Callable[[], bool] = lambda: False  # answers 503 SlowDown
    refuse_share: float = 0.0  # of requests, at random: 503 or 500
    retry_after_s: float | None = None
    forbid: bool = False  # 403 for ever
    expired_token: str | None = None  # ExpiredToken for every request signed with this session token
    lost_replies_times: int = 0  # the request is carried out, its answer never comes
    lost_replies_method: str = "PUT"
    reset_times: int = 0
    reset_after_bytes: int = 0
    cut_times: int = 0  # an orderly end too early
    cut_after_bytes: int = 0
    stall_times: int = 0
    stall_after_bytes: int = 0
    stall_s: float = 3600.0
    slow_share: float = 0.0  # of GETs: their answer comes slow_s late
    slow_s: float = 5.0
    bytes_per_s: float | None = None  # of all bodies together


@dataclass(frozen=True)
class Seen:
    """One request. `status` is what the client got (0: nothing), `body_bytes` how much of a body."""

    method: str
    path: str
    status: int
    range: str | None
    body_bytes: int


@dataclass
class _Log:
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: list[Seen] = field(default_factory=list)


class FaultServer:
    """Listens on 127.0.0.1 and a port of its own. Thread-safe."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self.faults = Faults()
        self.upstream = urlsplit(upstream)
        self.random = random.Random(seed)
        self._log = _Log()
        self._sockets: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._may_send_at = 0.0

    def __enter__(self) -> "FaultServer":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listens (again), on the same port as before."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Listener(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        """Refuses new connections and breaks the open ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for connection in list(self._sockets):
            reset(connection)

    def count(self, method: str | None = None) -> int:
        """Requests that arrived since the last clear."""
        return len([entry for entry in self.seen if method in (None, entry.method)])

    @property
    def seen(self) -> list[Seen]:
        with self._log.lock:
            return list(self._log.seen)

    def clear(self) -> None:
        with self._log.lock:
            self._log.seen.clear()

    def note(self, entry: Seen) -> None:
        with self._log.lock:
            self._log.seen.append(entry)

    def take(self, name: str) -> bool:
        """Whether a fault that strikes a number of times strikes now."""
        with self._log.lock:
            left = getattr(self.faults, name)
            setattr(self.faults, name, max(0, left - 1))
            return bool(left > 0)

    def happens(self, share: float) -> bool:
        with self._log.lock:
            return share > 0 and self.random.random() < share

    def pace(self, size: int) -> None:
        """Holds every body to `bytes_per_s` of all of them together."""
        if self.faults.bytes_per_s is None:
            return
        with self._log.lock:
            starts_at = max(time.monotonic(), self._may_send_at)
            self._may_send_at = starts_at + size / self.faults.bytes_per_s
        time.sleep(max(0.0, self._may_send_at - time.monotonic()))


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultServer
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Counted in `seen` instead."""

    def setup(self) -> None:
        super().setup()
        self.owner._sockets.add(self.connection)

    def finish(self) -> None:
        self.owner._sockets.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refusal = self._refusal()
        if refusal is not None:
            self._refuse(*refusal)
        elif self.command == self.owner.faults.lost_replies_method and self.owner.take("lost_replies_times"):
            self._forward(body)
            self._note(0, 0)
            self._break(after_bytes=0)
        else:
            self._answer(*self._forward(body))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # names that http.server calls

    def _refusal(self) -> tuple[int, str] | None:
        faults = self.owner.faults
        token = self.headers.get("X-Amz-Security-Token")
        if faults.forbid:
            return 403, "AccessDenied"
        if faults.expired_token is not None and token == faults.expired_token:
            return 400, "ExpiredToken"
        if faults.refuse_while():
            return 503, "SlowDown"
        if self.owner.happens(faults.refuse_share):
            return (503, "SlowDown") if self.owner.happens(0.5) else (500, "InternalError")
        return None

    def _refuse(self, status: int, code: str) -> None:
        self._note(status, 0)
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        if status >= 500 and self.owner.faults.retry_after_s is not None:
            self.send_header("Retry-After", f"{self.owner.faults.retry_after_s:g}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection(self.owner.upstream.hostname or "", self.owner.upstream.port, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        reply = upstream.getresponse()
        try:
            return reply, reply.read()
        finally:
            upstream.close()

    def _answer(self, reply: http.client.HTTPResponse, body: bytes) -> None:
        if self.command == "GET" and self.owner.happens(self.owner.faults.slow_share):
            time.sleep(self.owner.faults.slow_s)
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        if length is not None and reply.status != 204:
            self.send_header("Content-Length", length)
        fault = self._fault_of(reply.status, body)
        sent = 0 if self.command == "HEAD" else len(body) if fault is None else getattr(self.owner.faults, f"{fault}_after_bytes")
        self._note(reply.status, sent)  # before the client can know: it may look at once
        self.end_headers()
        self._send(body[:sent])
        if fault is not None:
            self._break(after_bytes=sent, stall=fault == "stall", politely=fault == "cut")

    def _fault_of(self, status: int, body: bytes) -> str | None:
        if self.command != "GET" or status not in (200, 206):
            return None
        for name in ("reset", "cut", "stall"):
            if len(body) > getattr(self.owner.faults, f"{name}_after_bytes") and self.owner.take(f"{name}_times"):
                return name
        return None

    def _send(self, body: bytes) -> None:
        for start in range(0, len(body), CHUNK_BYTES):
            chunk = body[start : start + CHUNK_BYTES]
            self.owner.pace(len(chunk))
            self.wfile.write(chunk)

    def _break(self, *, after_bytes: int, stall: bool = False, politely: bool = False) -> None:
        self.close_connection = True
        self.wfile.flush()
        if stall:
            self._wait_until_the_client_leaves()
        if politely:
            self.connection.shutdown(socket.SHUT_WR)
        else:
            time.sleep(0.05 if after_bytes else 0)  # a reset overtakes what is still on its way
            reset(self.connection)

    def _wait_until_the_client_leaves(self) -> None:
        self.connection.settimeout(self.owner.faults.stall_s)
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def _note(self, status: int, body_bytes: int) -> None:
        self.owner.note(Seen(self.command, self.path, status, self.headers.get("Range"), body_bytes))
