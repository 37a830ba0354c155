"""The port of a supervisor, before those who mean no good (B60) and those who come from another attempt."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import pytest

from stagecoach.supervisor import http
from stagecoach.supervisor.http import HttpServer, Request, Response
from stagecoach.supervisor.rendezvous import Leader
from stagecoach.testing.builders import attempt_start

Client = Callable[[int], Awaitable[None]]


async def hello(request: Request) -> Response:
    return Response(200, b"hello " + request.body) if request.path != "/broken" else Response.json(200, object())


def serve(client: Client) -> None:
    async def run() -> None:
        server = HttpServer(hello)
        port = await server.start("127.0.0.1", 0)
        await client(port)
        assert (await send(port, b"GET / HTTP/1.1\r\n\r\n")).endswith(b"hello ")  # and it still answers
        await server.close()

    asyncio.run(run())


async def send(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nworld", b"200"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 10_000 + b"\r\n\r\n", b"400"),
    ],
)
def test_every_request_has_an_answer(request_bytes: bytes, status: bytes) -> None:
    async def client(port: int) -> None:
        assert (await send(port, request_bytes)).split(b" ")[1] == status

    serve(client)


def test_random_bytes_a_hundred_megabytes_and_a_hundred_slow_senders_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.5)

    async def client(port: int) -> None:
        for size in (1, 100, 10_000, 1_000_000):
            answer = await send(port, os.urandom(size))
            assert answer == b"" or answer.split(b" ")[1] in (b"400", b"408")
        answer = await send(port, b"POST / HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n", *[b"x" * 1_000_000] * 100)
        assert answer == b"" or answer.split(b" ")[1] == b"413"
        slow = await asyncio.gather(*(send(port, *[b"G"] * 8, pause_s=0.1) for _ in range(100)))
        assert all(answer == b"" or answer.split(b" ")[1] in (b"408", b"503") for answer in slow)

    serve(client)


def test_a_leader_answers_its_own_nodes_and_refuses_all_others() -> None:
    async def run() -> None:
        start = attempt_start(attempt=7, nonce="mine", nodes=2, ranks_per_node=2, world_size=4)
        leader = Leader(start, host="here", machine="m0", deadline_s=5)

        def post(**message: object) -> Response:
            return leader.handle(Request("POST", "/rendezvous", json.dumps(message).encode()))

        assert json.loads(leader.handle(Request("GET", "/rendezvous")).body) == {"attempt": 7, "nonce": "mine"}
        assert post(nonce="another", node=1, machine="m1").status == 409
        assert post(nonce="mine", node=2, machine="m1").status == 409
        assert post(nonce="mine", node=0, machine="m1").status == 409
        assert post(nonce="mine", node="x", machine="m1").status == 400
        assert post(nonce="mine", node=1, machine="m1", verdict={"kind": "crashed"}).status == 400
        assert leader.handle(Request("POST", "/rendezvous", b"\xff")).status == 400
        assert json.loads(post(nonce="mine", node=1, machine="m1").body) == {"state": "gathering", "master": None}
        host, port = await leader.gather(asyncio.Event())
        assert json.loads(post(nonce="mine", node=1, machine="m1").body) == {"state": "go", "master": [host, port]}
        failed = {"kind": "bad_data", "exit_code": 41, "message": "a bad shard", "first_failed_rank": 3, "ranks": []}
        post(nonce="mine", node=1, machine="m1", verdict=failed)
        assert leader.trouble().message == "node 1 failed: a bad shard"

    asyncio.run(run())
