"""A store that sends its callers elsewhere (reliability.md, B22): nobody goes there."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stagecoach.storage import StoreMisconfigured, StoreSettings, open_store

ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>go</Message><Endpoint>{to}</Endpoint></Error>"


class _Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"  # or nobody answers `Expect: 100-continue`
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Counted in `asked` instead."""

    def handle_any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        body = ERROR.format(code=self.server.code, to=self.server.to).encode() if self.server.to else b"what is inside"
        self.send_response(self.server.status if self.server.to else 200)
        if self.server.to:
            self.send_header("Location", self.server.to)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = handle_any  # names that http.server calls


class Server(ThreadingHTTPServer):
    """Answers everything with a redirect, or, without an address to send to, with something that must not be read."""

    daemon_threads = True

    def __init__(self, to: str = "", status: int = 307, code: str = "TemporaryRedirect") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.to, self.status, self.code = to, status, code
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def inside() -> Iterator[Server]:
    """Stands for what is reached from where we run, and by nobody outside."""
    with Server() as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (302, "Found"), (307, "TemporaryRedirect"), (308, "PermanentRedirect")]
)
def test_a_redirect_to_an_address_inside_is_an_error_and_nobody_goes_there(
    status: int, code: str, inside: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with Server(f"{inside.url}/bucket/here", status, code) as sender:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", sender.url)
        store = open_store(
            "s3://bucket/x", settings=StoreSettings(deadline_s=2.0, read_timeout_s=1.0, backoff_base_s=0.05, backoff_cap_s=0.2)
        )
        for use in (lambda: store.read("here"), lambda: store.read_ranges("here", [(0, 4)]), lambda: store.publish("here", b"mine")):
            with pytest.raises(StoreMisconfigured, match=rf"s3://bucket: .* redirects to {inside.url}/bucket/here.*AWS_ENDPOINT_URL_S3"):
                use()
        assert len(sender.asked) == 3  # not tried again
        sender.shutdown()
    assert inside.asked == []
