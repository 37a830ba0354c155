"""`prefect server start` as a process of its own, for tests and measurements that kill it. Needs Prefect installed; imports none of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from stagecoach.testing.local_world import wait_for

START_S = 240.0
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class PrefectServer:
    """One server. `home`: its database and log; started again it knows what it knew."""

    home: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that use the server; what launchers remember is beside its home."""
        state = str(self.home.with_name("stagecoach-state"))
        return {**os.environ, **QUIET, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.url, "STAGECOACH_STATE_DIR": state}

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        wait_for(self.is_up, "Prefect's server", START_S)

    def is_up(self) -> bool:
        try:
            self.ask("health", timeout_s=2)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to it and what it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ask(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 60) -> Any:
        """GET without a body, else POST.

        503 is SQLite's "database is locked": nothing was done, so it is asked again, as Prefect's own client does.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers={"Content-Type": "application/json"})  # noqa: S310 - ours
        until = time.monotonic() + timeout_s
        while True:
            try:
                with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 - ours
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > until:
                    raise
            time.sleep(0.5)

    def all(self, what: str) -> list[dict[str, Any]]:
        """`deployments`, `flow_runs`, `automations`, ..."""
        found: list[dict[str, Any]] = self.ask(f"{what}/filter", {})
        return found
