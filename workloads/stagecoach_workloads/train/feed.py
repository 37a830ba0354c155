"""The steps of one rank, loaded ahead in a thread, so that waiting for data can be watched and left."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagecoach.errors import StorageError
from stagecoach.storage import Store, StoreSettings
from stagecoach_workloads.data.plan.shares import ShareMeter
from stagecoach_workloads.data.plan.states import EVERY_STEPS, states_key, write_state_table
from stagecoach_workloads.data.work.loader import LoadedStep, StepLoader
from stagecoach_workloads.testing.phases import reached

POLL_S = 0.2
AHEAD = 2
# A store in trouble ends a wait by itself, with an error. What takes longer than its deadline twice over is no store: the loader is stuck.
PATIENCE_S = 2 * StoreSettings().deadline_s
SHARES_EVERY_STEPS = 50


@dataclass(frozen=True)
class Fed:
    """One step's microbatches on this rank, and the data state after it (what a checkpoint keeps)."""

    loaded: LoadedStep
    state_after: dict[str, Any]
    shares: dict[str, Any] | None = None  # `ShareMeter.report` of the window that ends here
    complaint: str | None = None  # why the table of states could not be written


class DataWatch:
    """What one rank does for all besides loading: adds up what the steps are made of, and keeps the job's table of data states."""

    def __init__(self, loader: StepLoader, job: Store, *, last_step: int) -> None:
        """`last_step`: the data plan's, where the stage ends."""
        self._plan, self._job, self._last_step = loader.data.plan, job, last_step
        self._key = states_key(loader.data.stage.name)
        self._meter = ShareMeter(self._plan)
        self._counted = 0

    def shares(self, step: int) -> dict[str, Any] | None:
        """Counts a step; a report at the end of each window, and of the stage."""
        self._meter.add(self._plan.batch(step))
        self._counted += 1
        if self._counted < SHARES_EVERY_STEPS and step < self._last_step:
            return None
        report = self._meter.report()
        self._meter.reset()
        self._counted = 0
        return report

    def keep_states(self, step: int) -> str | None:
        """Writes the table when it is time. Returns what went wrong: without it a seek takes longer, and nothing else does."""
        if (step + 1) % EVERY_STEPS:
            return None
        try:
            write_state_table(self._job, self._key, self._plan)
        except StorageError as error:
            return str(error)
        return None


class Feed:
    """Iterates a `StepLoader` in a thread. The plan, which is not safe to share, is touched there only."""

    def __init__(self, loader: StepLoader, watch: DataWatch | None = None) -> None:
        """`watch`: on one of the ranks."""
        self._loader, self._watch = loader, watch
        self._ready: queue.Queue[Fed | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def next(self, should_leave: Callable[[], bool], beat: Callable[[], None]) -> Fed | None:
        """The next step; None when `should_leave` said so, which is asked a few times a second. Raises what loading raised.

        `beat` is called as often, for PATIENCE_S: then the watchdog takes the rank for what it is, looks at its threads and ends it.
        """
        began = time.monotonic()
        while True:
            try:
                fed = self._ready.get(timeout=POLL_S)
            except queue.Empty:
                if should_leave():
                    return None
                if time.monotonic() - began < PATIENCE_S:
                    beat()
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
                reached("load", loaded.step + 1)
                if not self._put(self._fed(loaded)):
                    return
        except BaseException as error:
            self._put(error)

    def _fed(self, loaded: LoadedStep) -> Fed:
        state_after = self._loader.state(loaded.step + 1)
        if self._watch is None:
            return Fed(loaded, state_after)
        return Fed(loaded, state_after, self._watch.shares(loaded.step), self._watch.keep_states(loaded.step))

    def _put(self, item: Fed | BaseException) -> bool:
        """False when nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False
