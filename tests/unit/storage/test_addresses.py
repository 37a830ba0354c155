"""A wrong address or credential is told apart from a store in trouble (reliability.md, B21): each its own sentence with what to do."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.constants import ExitCode
from stagecoach.storage import AccessDenied, StoreMisconfigured, StoreSettings, StoreUnavailable, open_store


def test_a_missing_bucket(s3_uri: str) -> None:
    store = open_store("s3://stagecoach-no-such-bucket/x")
    for use in (store.list, lambda: store.read("a"), lambda: store.publish("a", b"1")):
        with pytest.raises(StoreMisconfigured, match="bucket 'stagecoach-no-such-bucket' does not exist at http.*create it") as caught:
            use()
        assert caught.value.exit_code == ExitCode.ASKED_WRONGLY


def test_a_host_that_does_not_resolve_is_given_up_early(s3_uri: str, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid:9000")
    with pytest.raises(
        StoreUnavailable, match="host name of http://no-such-host.invalid:9000 does not resolve; correct AWS_ENDPOINT_URL_S3"
    ):
        open_store(s3_uri, clock=clock).read("a")
    assert clock.now < 20


def test_a_port_where_nobody_listens(s3_uri: str, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="http://127.0.0.1:9 refuses connections"):
        open_store(s3_uri, settings=StoreSettings(deadline_s=10), clock=clock).read("a")


def test_no_credentials(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessDenied, match="no usable credentials.*set AWS_ACCESS_KEY_ID"):
        open_store(s3_uri).read("a")


class Answering:
    """A server that gives every request one fixed answer; with a certificate, over TLS."""

    def __init__(self, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.tls = answer, tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.tls.wrap_socket(connection, server_side=True) if self.tls else connection as talking:
                    talking.recv(65536)
                    talking.sendall(self.answer)
            except OSError:
                continue


@pytest.fixture
def wrong_region(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>x</Message><Region>eu-central-1</Region></Error>"
    head = b"HTTP/1.1 400 Bad Request\r\nx-amz-bucket-region: eu-central-1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = Answering(head + body)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.port}")
    yield
    server.listener.close()


def test_a_bucket_of_another_region(s3_uri: str, wrong_region: None) -> None:
    with pytest.raises(StoreMisconfigured, match="is in eu-central-1, but this process uses region us-east-1; set AWS_REGION"):
        open_store(s3_uri).read("a")


def test_a_certificate_that_nobody_signed(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-days", "2", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Answering(b"", context)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{server.port}")
    with pytest.raises(StoreMisconfigured, match="no trusted TLS connection to https://127.0.0.1.*AWS_CA_BUNDLE"):
        open_store(s3_uri).read("a")
    server.listener.close()


def test_plain_http_spoken_to_as_https(s3_uri: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url.replace("http://", "https://"))
    with pytest.raises(StoreMisconfigured, match="no trusted TLS connection.*correct http:// or https://"):
        open_store(s3_uri, settings=StoreSettings(deadline_s=3)).read("a")


def test_a_file_root_without_permission_or_with_a_file_in_the_way(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    store.publish("a", b"1")
    with pytest.raises(StoreMisconfigured, match="a folder and a file want the same name"):
        store.publish("a/b", b"1")
    with pytest.raises(StoreMisconfigured, match="takes no name as long"):
        store.publish("x" * 300, b"1")
    with pytest.raises(StoreMisconfigured, match="/proc/nothing/a: its folder cannot be made"):
        open_store("file:///proc/nothing").publish("a", b"1")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ftp://store", "write http://host:port"),
        ("store:9000", "write http://host:port"),
        ("http://store/path?x=1", "write http://host:port"),
        ("http://store:port", "write http://host:port"),
        ("http:// store", "write http://host:port"),
        ("http://me:hunter2hunter2@store:9000", "http://***@store:9000' carries a user or password"),
    ],
)
def test_an_address_that_is_none(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(StoreMisconfigured, match="AWS_ENDPOINT_URL_S3=") as caught:
        open_store("s3://bucket/x").read("a")
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
