"""Ranks meeting without collectives: through the key-value store of torch.distributed, so that a rank that is dead, stopped or lost is
named instead of hanging the others. Nothing is pickled.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol


class KeyValueStore(Protocol):
    """What is used of torch.distributed's Store."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...


class Dropped(Exception):
    """The others went on without this rank: it came too late."""


class Meeting:
    """One rank's side. All ranks call `gather` with the same names in the same order; rank 0 decides who is missing."""

    def __init__(
        self, store: KeyValueStore, *, rank: int, world_size: int, patience_s: float, on_wait: Callable[[], None] = lambda: None
    ) -> None:
        """`on_wait` is called while this rank waits for others, a few times a second: heartbeats, and looking for a stop."""
        self.store, self.rank, self.world_size, self.patience_s, self.on_wait = store, rank, world_size, patience_s, on_wait
        self.missing: dict[int, str] = {}  # rank -> the first phase it did not come through
        self._poll_s = min(0.25, max(0.005, world_size * 0.0005))  # so that 512 ranks ask a single server 2,000 times a second at most

    @property
    def present(self) -> list[int]:
        """Ranks that nobody has missed so far."""
        return [rank for rank in range(self.world_size) if rank not in self.missing]

    def gather(self, phase: str, value: str = "") -> Mapping[int, str]:
        """Waits until every present rank is here, or patience ends; rank 0 gets what each brought, the others get nothing.

        Ranks that did not come are in `missing` afterwards, on every rank. Raises Dropped when this rank is one of them.
        """
        self.store.set(f"{phase}/value/{self.rank}", value)
        self.store.add(f"{phase}/count", 1)
        if self.rank == 0:
            self._wait(lambda: self.store.add(f"{phase}/count", 0) >= len(self.present))
            absent = [rank for rank in self.present if not self.store.check([f"{phase}/value/{rank}"])]
            self.store.set(f"{phase}/go", json.dumps(absent))
        elif not self._wait(lambda: self.store.check([f"{phase}/go"]), patience_s=3 * self.patience_s):
            raise TimeoutError(f"rank 0 did not come through {phase} within {3 * self.patience_s:g} s")
        self.missing |= {int(rank): phase for rank in json.loads(self.store.get(f"{phase}/go"))}
        if self.rank in self.missing:
            raise Dropped(f"rank {self.rank} came to {phase} after {self.patience_s:g} s; the others went on without it")
        if self.rank != 0:
            return {}
        return {rank: self.store.get(f"{phase}/value/{rank}").decode() for rank in self.present}

    def tell(self, topic: str, value: str = "") -> str:
        """Rank 0 says something to all present ranks; every rank returns it. Raises TimeoutError when rank 0 says nothing."""
        if self.rank == 0:
            self.store.set(f"{topic}/told", value)
        elif not self._wait(lambda: self.store.check([f"{topic}/told"]), patience_s=3 * self.patience_s):
            raise TimeoutError(f"rank 0 said nothing about {topic} within {3 * self.patience_s:g} s")
        return self.store.get(f"{topic}/told").decode()

    def _wait(self, is_done: Callable[[], bool], *, patience_s: float | None = None) -> bool:
        """False when patience ended first."""
        until = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        told = 0.0
        while not is_done():
            now = time.monotonic()
            if now > until:
                return False
            if now - told > 0.3:
                self.on_wait()
                told = now
            time.sleep(self._poll_s)
        return True
