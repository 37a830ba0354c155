"""Prefect inside of `stagecoach run`: a server of its own for as long as the command runs, unless PREFECT_API_URL names one.

Prefect would start one itself, but in our process group, where Ctrl-C kills it first, and it would outlive us when we are killed. Ours is
in a session of its own and dies with us. Everything here happens before Prefect is imported: it reads its settings then.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagecoach.errors import StagecoachError
from stagecoach.site import Site, state_folder

START_S = 180.0  # a first start makes a database, and the machine may be busy; what is too slow is done without Prefect
STOP_S = 5.0
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # our own lines tell; Prefect would print a traceback for every error that has a sentence
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_CLIENT_ENABLE_METRICS": "false",
}
EMBEDDED = {"PREFECT_CLIENT_MAX_RETRIES": "2"}  # the server is our child: when it is gone, it does not come back
SERVER = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # as Prefect starts its temporary one
# PR_SET_PDEATHSIG: when we are killed, it is ended too. The parent may have died before that took effect.
BOOT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit()
import uvicorn
uvicorn.main()
"""


def prepare_prefect(site: Site) -> bool:
    """Sets the environment that Prefect reads when it is imported; what the user has set stands. True where no server is named."""
    if site.prefect_api_url is not None:
        os.environ.setdefault("PREFECT_API_URL", site.prefect_api_url)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("httpx", "websockets", "prefect"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return not os.environ.get("PREFECT_API_URL")


@contextmanager
def embedded_server() -> Iterator["EmbeddedServer"]:
    """Within, PREFECT_API_URL names a server of our own. It comes up while Prefect is imported; `wait` before it is used."""
    home = state_folder() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home))
    for name, value in EMBEDDED.items():
        os.environ.setdefault(name, value)
    server = EmbeddedServer(home)
    os.environ["PREFECT_API_URL"] = server.url
    try:
        yield server
    finally:
        server.stop()
        del os.environ["PREFECT_API_URL"]


class EmbeddedServer:
    """One process, on a free port of this machine only."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/api", home / "server.log"
        command = [sys.executable, "-c", BOOT, str(os.getpid()), "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1",
                   "--port", str(port), "--log-level", "error", "--lifespan", "on", "--timeout-keep-alive", "5"]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env={**environment, **SERVER}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Returns when it answers. Raises StagecoachError when it has ended, or takes longer than START_S."""
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None:
                raise StagecoachError(f"the embedded Prefect server ended with {self._process.returncode}; {self.log} says why")
            if time.monotonic() > deadline:
                raise StagecoachError(f"the embedded Prefect server did not come up within {START_S:g} s; {self.log} may say why")
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to all of its session."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
