"""An S3 server for tests: the one that AWS_ENDPOINT_URL_S3 names, else moto's, started as a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

START_TIMEOUT_S = 30.0
MOTO_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "stagecoach-moto", "AWS_SECRET_ACCESS_KEY": "moto-5f1c9a77e0", "AWS_REGION": "us-east-1"}
# moto checks If-None-Match and stores in two steps: of 16 racing writers two won once in some hundred rounds. A real server is
# atomic; here one request at a time makes it so. HTTP/1.1 spares a connection and a thread a request.
_MOTO = """
import logging, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple
WSGIRequestHandler.protocol_version, WSGIRequestHandler.disable_nagle_algorithm = "HTTP/1.1", True
logging.getLogger("werkzeug").setLevel(logging.ERROR)
application, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()
def serialised(environ, start_response):
    with one_at_a_time:
        return list(application(environ, start_response))
run_simple("127.0.0.1", int(sys.argv[1]), serialised, threaded=True)
"""


@dataclass(frozen=True)
class S3Server:
    """`environment` is what a process needs to reach it: AWS_* variables."""

    url: str
    environment: Mapping[str, str]
    is_moto: bool


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Yields a running S3 server. Raises TimeoutError when moto's does not come up."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3")
    if url:
        yield S3Server(url, {name: value for name, value in os.environ.items() if name.startswith("AWS_")}, is_moto=False)
        return
    with _moto() as url:
        yield S3Server(url, {**MOTO_CREDENTIALS, "AWS_ENDPOINT_URL_S3": url}, is_moto=True)


@contextlib.contextmanager
def bucket(server: S3Server) -> Iterator[str]:
    """Yields the name of a new bucket and empties and removes it afterwards."""
    import s3fs

    name = f"stagecoach-test-{uuid.uuid4().hex[:12]}"
    fs = s3fs.S3FileSystem(
        key=server.environment["AWS_ACCESS_KEY_ID"],
        secret=server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.url,
        client_kwargs={"region_name": server.environment.get("AWS_REGION", "us-east-1")},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    fs.call_s3("create_bucket", Bucket=name)
    try:
        yield name
    finally:
        fs.rm(name, recursive=True)


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", _MOTO, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"moto's server ended with code {process.returncode}; is moto[server] installed?")
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/moto-api/", timeout=2):  # noqa: S310
            return
        time.sleep(0.05)
    raise TimeoutError(f"moto's server did not answer at {url} within {START_TIMEOUT_S:g} s")
