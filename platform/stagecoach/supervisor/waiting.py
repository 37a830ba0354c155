"""Waiting for one of several things, one of which is always the platform's wish to stop."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StopRequested(Exception):
    """SIGTERM came while nothing was running that could be saved."""


async def wait_for(event: asyncio.Event, *, stop: asyncio.Event | None, timeout_s: float) -> None:
    """Returns at the event (which is cleared) or the timeout. Raises StopRequested when `stop` is or gets set."""
    if stop is not None and stop.is_set():
        raise StopRequested
    await first_of(timeout_s, event, *([stop] if stop is not None else []))
    if stop is not None and stop.is_set():
        raise StopRequested
    event.clear()


async def pause(seconds: float, *, stop: asyncio.Event) -> None:
    """Sleeps. Raises StopRequested."""
    await wait_for(asyncio.Event(), stop=stop, timeout_s=seconds)


async def first_of(timeout_s: float, *events: asyncio.Event) -> None:
    """Returns when one of the events is set, or at the timeout."""
    if any(event.is_set() for event in events):
        return
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def unless_stopped(stop: asyncio.Event, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking function in a thread. Raises StopRequested as soon as `stop` is set: the thread is left behind."""
    return await unless_stopped_before(stop, lambda: 0.0, function, *args, **kwargs)


async def unless_stopped_before(
    stop: asyncio.Event, patience_s: Callable[[], float], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """The same for a function that changes the ledger: nothing is begun once `stop` is set, and what was begun has `patience_s()` more to
    return, so that nobody is left with a change that he does not know of."""
    if stop.is_set():
        raise StopRequested
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done() and (left := patience_s()) > 0:
        await asyncio.wait([work], timeout=left)
    if work.done():
        return work.result()
    work.add_done_callback(lambda late: late.exception())  # nobody asks for it any more
    raise StopRequested
