"""An HTTP server that answers what a cluster's API server may, on order: for tests of the client, its retries and its watches."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3  # type: ignore[import-untyped]  # the version that TorchX 0.7.0 wants has no types

from stagecoach.launch.kube.client import Kube

Answer = tuple[int, Any, dict[str, str]]  # status, body (JSON, or bytes), headers


def status(code: int, reason: str = "", message: str = "", **details: Any) -> Answer:
    """A `Status` object."""
    return code, {"kind": "Status", "reason": reason, "message": message, "code": code, "details": details}, {}


class ApiServer:
    """Answers requests with what stands in `answers`, in order; the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer | str] = []  # "hang up": no answer; "be silent": none, and the connection stays
        self.routes: dict[str, Answer | str] = {}
        self.silence = threading.Event()
        self.asked: list[tuple[str, str, dict[str, Any] | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                """The next one."""
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                server.asked.append((self.command, self.path, body))
                found = server.next_answer(self.path)
                if found == "hang up":
                    self.close_connection = True
                    self.connection.close()
                    return
                if found == "be silent":
                    server.silence.wait()
                    return
                assert not isinstance(found, str)
                code, answer, headers = found
                sent = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(sent))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.slept: list[float] = []
        self.kube = Kube(
            f"http://127.0.0.1:{self.http.server_port}", urllib3.PoolManager().request, lambda: {"authorization": "Bearer t"},
            sleep=self.slept.append,
        )  # fmt: skip

    def next_answer(self, path: str) -> Answer | str:
        """Of the first route that is in the path, else the next in order."""
        for part, answer in self.routes.items():
            if part in path:
                return answer
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        self.silence.set()
        self.http.shutdown()
        self.http.server_close()
