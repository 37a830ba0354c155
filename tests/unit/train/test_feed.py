"""Waiting for data: it ends with the data, with what loading raised, or when it is time to leave."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stagecoach.errors import DataError
from stagecoach_workloads.train import feed
from stagecoach_workloads.train.feed import Feed


class Loader:
    """Stands where `StepLoader` does: so many steps, and then what a test orders."""

    def __init__(self, steps: int, then: BaseException | None = None) -> None:
        self.steps, self.then, self.go = steps, then, threading.Event()

    def state(self, step: int) -> dict[str, int]:
        return {"step": step}

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            yield SimpleNamespace(step=step, batches=[], bad=[])
        if self.then is not None:
            raise self.then
        self.go.wait()  # a store that does not answer


@pytest.fixture
def feeding() -> Iterator[Any]:
    """feeding(loader): its feed. Afterwards the loader is let go, and the feed's thread ends."""
    made: list[tuple[Feed, Loader]] = []

    def make(loader: Loader) -> Feed:
        made.append((Feed(loader), loader))  # type: ignore[arg-type]
        return made[-1][0]

    yield make
    for each, loader in made:
        loader.go.set()
        each.close()
        each._thread.join(60)
        assert not each._thread.is_alive()


def never() -> bool:
    return False


def test_steps_come_in_order_and_then_what_loading_raised(feeding: Any) -> None:
    source = feeding(Loader(3, DataError("shard 7 is cut off")))
    fed = [source.next(never, never) for _ in range(3)]
    assert [(each.loaded.step, each.state_after) for each in fed] == [(step, {"step": step + 1}) for step in range(3)]
    with pytest.raises(DataError, match="shard 7 is cut off"):
        source.next(never, never)


def test_a_stop_is_obeyed_while_data_does_not_come_and_the_heart_beats_meanwhile(feeding: Any) -> None:
    """The loader never answers: only the flag ends the wait."""
    source, beats, looks = feeding(Loader(0)), [], iter([False, False, True])
    assert source.next(lambda: next(looks), lambda: beats.append(1)) is None
    assert list(looks) == []  # it was looked at until it said so, and no more
    assert len(beats) == 2


def test_who_waits_longer_than_any_store_answers_beats_no_more(feeding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the watchdog takes the rank for what it is: a loader that is stuck."""
    monkeypatch.setattr(feed, "PATIENCE_S", 0.0)
    beats: list[int] = []
    looks = iter([False, False, True])
    assert feeding(Loader(0)).next(lambda: next(looks), lambda: beats.append(1)) is None
    assert beats == []
