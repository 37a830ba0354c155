"""Work for a thread behind a bounded queue. Whoever hands it over never waits; what does not fit is counted."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Calls `work(item)` in a thread of its own, one item after another. Only `flush` waits, as long as it is told; nothing raises."""

    def __init__(self, name: str, work: Callable[[Item], None], *, budget: int) -> None:
        """`budget`: the sum of costs (bytes, say) that may wait; the thread starts with the first item."""
        self._name, self._work, self._budget = name, work, budget
        self._waiting: deque[tuple[Item, int]] = deque()
        self._changed = threading.Condition()
        self._cost = 0  # of what waits and of what is being worked on
        self._thread: threading.Thread | None = None
        self.dropped = 0  # did not fit
        self.failed = 0  # `work` raised
        self.last_error = ""

    def offer(self, item: Item, cost: int) -> bool:
        """False when too much waits already: then the item is lost."""
        with self._changed:
            if self._cost + cost > self._budget:
                self.dropped += 1
                return False
            self._cost += cost
            self._waiting.append((item, cost))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything offered was worked on; False at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._cost == 0 and not self._waiting, timeout_s)

    @property
    def lost(self) -> int:
        """Items that reached nobody."""
        return self.dropped + self.failed

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                item, cost = self._waiting.popleft()
            try:
                self._work(item)
            except Exception as error:  # whatever a sink does: it is never a reason to stop
                self.failed += 1
                self.last_error = f"{type(error).__name__}: {error}"
            with self._changed:
                self._cost -= cost
                self._changed.notify_all()
