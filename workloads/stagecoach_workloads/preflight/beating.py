"""Long calls of which nothing returns until the end: run beside the main thread, which goes on beating."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from stagecoach_workloads.preflight.board import Board

T = TypeVar("T")
BEAT_S = 0.3


def beating(work: Callable[[], T], board: Board, *, patience_s: float | None = None) -> T:
    """Runs `work` in a thread while this one, whose life the watchdog sees, beats. Raises what `work` raises, or TimeoutError."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="preflight", daemon=True).start()
    until = None if patience_s is None else time.monotonic() + patience_s
    while True:
        try:
            return future.result(timeout=BEAT_S)
        except TimeoutError:
            if future.done():
                raise
            board.beat()
        if until is not None and time.monotonic() > until:
            raise TimeoutError(f"no end after {patience_s:g} s")


def says(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
