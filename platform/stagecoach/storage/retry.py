"""When to try again. One place for all stores: the libraries below are told never to.

The rule that keeps a store in trouble from being buried: **at most three requests leave for every one that is needed**. Each call
pays for two retries when it starts. One goes into a purse that all calls of the store share, so a process that has done a
hundred calls can afford to look often whether the store is back. The other stays with the call and is spent late in its
deadline, or as soon as somebody else's request got through. While the store refuses everything, one call at a time looks, and
all others wait for its answer. Connections refused, reset or silent are not charged: no server worked on them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from stagecoach.errors import StorageError
from stagecoach.jitter import jitter
from stagecoach.redaction import redact
from stagecoach.storage.errors import StoreUnavailable
from stagecoach.storage.settings import Clock, StoreSettings

T = TypeVar("T")
Kind = Literal["refused", "unreachable", "broken"]

FAILURES_TO_CLOSE = 3  # in a row, with no success anywhere between them
PURSE_LIMIT = 100.0  # retries saved up
RICH = 5.0  # with so much saved up, a first quick look costs little: one refusal in a good while is no outage
QUICK_SHARE = 0.05  # of backoff_base_s, for the rich
LOOK_EVERY_S = 1.0  # how often a waiting call looks whether the store came back
UNREACHABLE_CAP_S = 3.0


class Transient(Exception):
    """Internal: one request failed in a way that time may heal.

    refused: an answer of 429 or 5xx. unreachable: no connection. broken: reset, cut short or silent.
    """

    def __init__(self, kind: Kind, says: str, *, retry_after_s: float | None = None, give_up_after_s: float | None = None) -> None:
        super().__init__(says)
        self.kind, self.says, self.retry_after_s, self.give_up_after_s = kind, says, retry_after_s, give_up_after_s


@dataclass
class Ticket:
    """One call on its way."""

    started_at: float
    deadline_at: float
    last_try_at: float
    tries: int = 0
    failed_at: float = -1.0
    not_before: float = 0.0
    has_reserve: bool = True
    is_free: bool = False  # the last failure cost the store nothing
    is_looking: bool = False


class Gate:
    """What all calls of one store know about its health. Thread-safe."""

    def __init__(self, settings: StoreSettings, clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.lock = threading.Lock()
        self.purse = 0.0
        self.failures = 0  # since the last success
        self.last_success_at = -1.0
        self.next_look_at = 0.0
        self.somebody_looks = False

    def __reduce__(self) -> tuple[type["Gate"], tuple[StoreSettings, Clock]]:
        return Gate, (self.settings, self.clock)  # a spawned process starts with a clean record

    def open_ticket(self) -> Ticket:
        now = self.clock.monotonic()
        patience = self.settings.deadline_s
        with self.lock:
            self.purse = min(PURSE_LIMIT, self.purse + 1)
        return Ticket(started_at=now, deadline_at=now + patience, last_try_at=now + patience * self.settings.last_try_at)

    def wait_for_turn(self, ticket: Ticket) -> bool:
        """Sleeps until the ticket may send. Returns False when its deadline passed first."""
        while True:
            now = self.clock.monotonic()
            if now >= ticket.deadline_at:
                return False
            with self.lock:
                wake_at = self._next_chance(ticket, now)
            if wake_at is None:
                ticket.tries += 1
                return True
            self.clock.sleep(max(0.001, min(wake_at - now, LOOK_EVERY_S, ticket.deadline_at - now)))

    def _next_chance(self, ticket: Ticket, now: float) -> float | None:
        """None: send now. Else when to ask again."""
        is_closed = self.failures >= FAILURES_TO_CLOSE
        ready_at = max(ticket.not_before, self.next_look_at) if is_closed else self._ready_at(ticket)
        if now < ready_at:
            return ready_at
        if is_closed and self.somebody_looks:
            return now + LOOK_EVERY_S
        if ticket.tries and not self._pay(ticket, now):
            return max(ticket.last_try_at, now + LOOK_EVERY_S)
        if is_closed:
            self.somebody_looks = ticket.is_looking = True
        return None

    def _ready_at(self, ticket: Ticket) -> float:
        if self.last_success_at > ticket.failed_at:  # the store answers others: no reason to wait out a long pause
            return min(ticket.not_before, self.last_success_at + jitter.uniform(0, 0.2))
        return ticket.not_before

    def _pay(self, ticket: Ticket, now: float) -> bool:
        if ticket.is_free:
            return True
        if self.purse >= 1:
            self.purse -= 1
            return True
        if ticket.has_reserve and (now >= ticket.last_try_at or self.last_success_at > ticket.failed_at):
            ticket.has_reserve = False
            return True
        return False

    def succeeded(self, ticket: Ticket) -> None:
        with self.lock:
            self.failures, self.last_success_at = 0, self.clock.monotonic()
            self._stop_looking(ticket)
            if ticket.has_reserve:
                self.purse = min(PURSE_LIMIT, self.purse + 1)

    def failed(self, ticket: Ticket, failure: Transient) -> None:
        with self.lock:
            now = self.clock.monotonic()
            self.failures += 1
            self._stop_looking(ticket)
            ticket.failed_at, ticket.is_free = now, failure.kind != "refused"
            pause = self._pause(ticket.tries, failure)
            ticket.not_before = now + pause
            if self.failures >= FAILURES_TO_CLOSE:
                self.next_look_at = max(self.next_look_at, now + self._pause(self.failures - FAILURES_TO_CLOSE + 1, failure))
            if failure.give_up_after_s is not None:
                ticket.deadline_at = min(ticket.deadline_at, ticket.started_at + failure.give_up_after_s)

    def released(self, ticket: Ticket) -> None:
        """The call ended for a reason of its own (an interrupt): it says nothing about the store."""
        with self.lock:
            self._stop_looking(ticket)

    def progressed(self, ticket: Ticket) -> None:
        """Part of a body arrived. What is left is a new needed request, with a new deadline."""
        with self.lock:
            now = self.clock.monotonic()
            self.failures, self.last_success_at = 0, now
            patience = self.settings.deadline_s
            ticket.deadline_at, ticket.last_try_at = now + patience, now + patience * self.settings.last_try_at
            self.purse = min(PURSE_LIMIT, self.purse + 1)
            ticket.tries, ticket.has_reserve = 1, True

    def _stop_looking(self, ticket: Ticket) -> None:
        if ticket.is_looking:
            self.somebody_looks = ticket.is_looking = False

    def _pause(self, tries: int, failure: Transient) -> float:
        """Exponential with full jitter; never less than the server asked for."""
        cap = UNREACHABLE_CAP_S if failure.kind == "unreachable" else self.settings.backoff_cap_s
        base = self.settings.backoff_base_s * (QUICK_SHARE if self.purse >= RICH else 1)
        bound = min(cap, base * 2.0 ** min(tries - 1, 16))
        jittered = jitter.uniform(0, bound)
        if failure.retry_after_s is not None:
            return failure.retry_after_s + jitter.uniform(0, min(1.0, bound))
        return jittered


def call(gate: Gate, what: str, attempt: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
    """Runs attempt() until it returns, raises something final, or the deadline passes.

    `what` starts the message of StoreUnavailable: "reading s3://bucket/key". `progress` counts bytes already in hand.
    """
    ticket, in_hand, last, requests = gate.open_ticket(), progress(), None, 0
    while gate.wait_for_turn(ticket):
        requests += 1
        try:
            result = attempt()
        except Transient as failure:
            last = failure
            if progress() > in_hand:
                in_hand = progress()
                gate.progressed(ticket)
            gate.failed(ticket, failure)
            _tell(what, failure, requests)
        except StorageError:  # not there, not allowed, replaced: the store did answer
            gate.succeeded(ticket)
            raise
        except BaseException:
            gate.released(ticket)
            raise
        else:
            gate.succeeded(ticket)
            return result
    waited = gate.clock.monotonic() - ticket.started_at
    raise StoreUnavailable(_gave_up(what, waited, requests, last)) from None


def _gave_up(what: str, waited: float, requests: int, last: Transient | None) -> str:
    says = redact(last.says) if last else "the store refuses other calls of this process, so none was sent"
    advice = (
        "Check the store's health" if last is None or last.kind == "refused" else "Check that the store runs and can be reached from here"
    )
    return f"{what}: gave up after {waited:.0f} s and {requests} requests; the last answer was: {says}. {advice}, then start again."


def _tell(what: str, failure: Transient, requests: int) -> None:
    """A store in trouble is said once a call, when the first quick retry has failed too."""
    if requests == 2:
        from loguru import logger

        logger.warning("{}: {}; trying on", redact(what), redact(failure.says))
