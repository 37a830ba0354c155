"""The rank's end of the saving process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from stagecoach_workloads.checkpoints.messages import LayoutOrder, Report, SaveOrder, SaverJob, as_line
from stagecoach_workloads.processes import stop_signals_held

PARENT_PID = "STAGECOACH_RANK_PID"
MODULE = "stagecoach_workloads.checkpoints.saver"
CLOSE_S = 10.0


class SaverLink:
    """A process that saves, its orders and its reports. Start it from the main thread: it dies with the thread that made it."""

    def __init__(self, job: SaverJob, on_report: Callable[[Report], None]) -> None:
        """`on_report` is called from a thread of its own, last with kind "gone" once the process has ended."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, PARENT_PID: str(os.getpid())}
        with theirs, stop_signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())], pass_fds=(theirs.fileno(), job.descriptor), env=environment
            )
        self._socket, self._on_report = ours, on_report
        self._is_closing = False
        self._sending = threading.Lock()
        self.send(job)
        self._reader = threading.Thread(target=self._read, name="checkpoint-reports", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: SaverJob | LayoutOrder | SaveOrder) -> None:
        """Queues an order. One to a process that has ended is lost: its end is reported."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(as_line(message))

    def close(self) -> None:
        """Lets the process finish what it does (within moments: it is idle or of no use any more), then ends it."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(CLOSE_S)
        self._socket.close()

    def kill(self) -> None:
        """At once: it is idle, or what it writes is of no use any more."""
        self._is_closing = True
        self._process.kill()
        self.close()

    def _read(self) -> None:
        import json

        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._on_report(Report(**json.loads(line)))
        if not self._is_closing:
            self._on_report(Report(kind="gone", step=-1, text=self._how_it_ended()))

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            return f"the saving process (pid {self.pid}) closed its pipe and does not end"
        if code < 0:
            return f"the saving process (pid {self.pid}) was killed by {signal.Signals(-code).name}"
        return f"the saving process (pid {self.pid}) ended with code {code}; its last words are in this rank's log"
