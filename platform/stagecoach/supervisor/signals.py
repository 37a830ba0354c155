"""SIGTERM and SIGINT from the supervisor's first line on. Standard library only: it is imported before everything else.

As PID 1 of a pod a process without a handler does not get the signal at all: the kernel drops it, and the grace period would pass unheard.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)
_asked_at: list[float] = []  # on the monotonic clock; the first counts


def hear_early() -> None:
    """Notes a signal that comes before `listen`."""
    for number in STOPS:
        signal.signal(number, _note)


def listen(on_stop: Callable[[float], None]) -> None:
    """Calls `on_stop` with the moment of the first signal: at once when it has been, else from the running event loop."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if not _asked_at:
            _note(0, None)
            on_stop(_asked_at[0])

    for number in STOPS:
        loop.add_signal_handler(number, on_signal)
    if _asked_at:
        on_stop(_asked_at[0])


def _note(_number: int, _frame: FrameType | None) -> None:
    _asked_at.append(time.monotonic())
