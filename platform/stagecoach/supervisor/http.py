"""The one port of a supervisor: a few small answers, and calm before bytes that mean no good (random, huge, very slow)."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stagecoach.contract.names import whole_number
from stagecoach.log import logger

MAX_HEAD_BYTES = 8192
MAX_BODY_BYTES = 256 * 1024
REQUEST_S = 5.0  # for all of a request to arrive: a slow sender is sent away
MAX_CONNECTIONS = 128
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict",
            413: "Content Too Large", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """Method, path without the query, and body."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """Status, body and its type."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, status: int, value: Any) -> "Response":
        return cls(status, json.dumps(value).encode(), "application/json")


class BadRequest(Exception):
    """What to answer to a request that is none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves `handler` until closed. One request a connection."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str | None, port: int) -> int:
        """Listens; returns the port (its own choice when `port` is 0). Raises OSError when it is in use."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            response = await self._answer(reader) if self._open <= MAX_CONNECTIONS else Response(503, b"too many connections\n")
            await asyncio.wait_for(_write(writer, response), REQUEST_S)
        except (OSError, TimeoutError):
            pass  # the other side is gone
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Response:
        try:
            request = await asyncio.wait_for(_read(reader), REQUEST_S)
            return await self._handler(request)
        except BadRequest as bad:
            return Response(bad.status, f"{bad}\n".encode())
        except TimeoutError:
            return Response(408, b"the request took too long\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return Response(400, b"this is no HTTP request\n")
        except OSError:
            raise
        except Exception:
            logger.exception("a request failed")
            return Response(500, b"internal error\n")


async def _read(reader: asyncio.StreamReader) -> Request:
    """Raises BadRequest, and what StreamReader raises on bytes that are no request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    words = head[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(400, "this is no HTTP/1 request")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if "transfer-encoding" in headers:
        raise BadRequest(400, "chunked bodies are not read here; send Content-Length")
    length = whole_number(headers.get("content-length", "0"))
    if length is None:
        raise BadRequest(400, "Content-Length is not a number")
    if length > MAX_BODY_BYTES:
        raise BadRequest(413, f"at most {MAX_BODY_BYTES} bytes")
    return Request(words[0], words[1].partition("?")[0], await reader.readexactly(length))


async def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    reason = _REASONS.get(response.status, "")
    head = (
        f"HTTP/1.1 {response.status} {reason}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + response.body)
    await writer.drain()
