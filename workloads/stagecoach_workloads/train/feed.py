"""The steps of one rank, loaded ahead in a thread, so that waiting for data can be watched and left."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagecoach_workloads.data.work.loader import LoadedStep, StepLoader

POLL_S = 0.2
AHEAD = 2


@dataclass(frozen=True)
class Fed:
    """One step's microbatches on this rank, and the data state after it (what a checkpoint keeps)."""

    loaded: LoadedStep
    state_after: dict[str, Any]


class Feed:
    """Iterates a `StepLoader` in a thread. The plan, which is not safe to share, is touched there only."""

    def __init__(self, loader: StepLoader) -> None:
        self._loader = loader
        self._ready: queue.Queue[Fed | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def next(self, should_leave: Callable[[], bool]) -> Fed | None:
        """The next step; None when `should_leave` said so, which is asked a few times a second. Raises what loading raised."""
        while True:
            try:
                fed = self._ready.get(timeout=POLL_S)
            except queue.Empty:
                if should_leave():
                    return None
                continue
            if isinstance(fed, BaseException):
                raise fed
            return fed

    def close(self) -> None:
        """Lets go of the thread; what it had loaded is dropped."""
        self._closed.set()

    def _run(self) -> None:
        try:
            for loaded in self._loader:
                if not self._put(Fed(loaded, self._loader.state(loaded.step + 1))):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item: Fed | BaseException) -> bool:
        """False when nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
