"""Reads a stage's events into curves: rank 0's of every attempt, thinned while they are read, however long the run was."""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StagecoachError
from stagecoach.report.curves import Curves
from stagecoach.report.numbers import finite

SOURCE = "rank-0"  # the one that tells scalars
BINS = 400  # a chart is 380 wide
MOST_SEGMENTS = 20_000  # of a stage: beyond it every k-th is read
READ_AT_ONCE = 8
MOST_NOTES = 200
LONGEST_LINE = 1 << 20
NOTABLE = frozenset({"rewound", "skipped", "straggler", "quarantined", "checkpoint_quarantined", "replicas_differ", "telemetry_lost"})
POINTS_IN_A_BIN = 32  # that are parsed: their mean is as good as that of thousands
_PHASE = b'"name": "phase"'  # most lines; not worth parsing
_STEP = re.compile(rb'\{"t": [0-9.e+]{1,30}, "step": ([0-9]{1,15}), "name": "step", ')  # as ranks write it; others are parsed
_NOT_TAKEN = b'"taken": false'  # all of them are counted


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened on the way."""

    attempt: int
    step: int
    name: str
    value: Any


@dataclass(slots=True)
class Told:
    """What a stage's events say."""

    curves: Curves
    notes: list[Note] = field(default_factory=list)
    notes_seen: int = 0
    skipped_steps: int = 0
    mixture: dict[str, list[float]] = field(default_factory=dict)  # achieved share by dataset, [sum over steps, steps]
    stride: int = 1  # of how many steps one was parsed
    every: int = 1  # of how many segments one was read
    problems: list[str] = field(default_factory=list)

    @classmethod
    def nothing(cls) -> "Told":
        """Of a stage that has not begun."""
        return cls(Curves(width=1, kept_until={}))


def read_events(folder: JobFolder, attempts: Iterable[int], *, steps: int, kept_until: dict[int, float]) -> Told:
    """All attempts' events. `steps`: how many the stage has, or has made, which sets the width of a bin. A segment that cannot be read is
    named in `problems`."""
    width = max(1, -(-steps // BINS))
    told = Told(Curves(width=width, kept_until=kept_until), stride=max(1, width // POINTS_IN_A_BIN))
    listed: list[tuple[int, list[str]]] = []
    for attempt in attempts:
        try:
            listed.append((attempt, folder.segments("events", attempt, SOURCE)))
        except StagecoachError as error:
            told.problems.append(str(error))
    told.every = max(1, -(-sum(len(keys) for _, keys in listed) // MOST_SEGMENTS))
    for attempt, keys in listed:
        _read_attempt(folder, attempt, _thinned(keys, told.every), told)
    return told


def _thinned(keys: list[str], every: int) -> list[str]:
    """Every k-th, and always the last."""
    return keys if every == 1 else [*keys[:-1:every], *keys[-1:]]


def _read_attempt(folder: JobFolder, attempt: int, keys: list[str], told: Told) -> None:
    last = 0
    for line in _lines(folder, keys, told, is_cut=told.every > 1):
        beginning = _STEP.match(line)
        if beginning is not None and last < (step := int(beginning[1])) and step % told.stride and _NOT_TAKEN not in line:
            last = step
            continue
        event = _parsed(line)
        if event is None:
            continue
        step, name, value = event
        if name == "step" and isinstance(value, dict):
            if step <= last:
                told.curves.rewind(attempt, step - 1)
            last = step
            _take_step(attempt, step, value, told)
        elif name == "validation" and isinstance(value, dict):
            for label, number in value.items():
                told.curves.add(attempt, f"validation/{label}", step, number)
        elif name == "shares" and isinstance(value, dict):
            if step <= told.curves.kept_until.get(attempt, step):  # what was lost with an attempt is not counted
                _take_shares(value, told)
        elif name in NOTABLE:
            told.notes_seen += 1
            if len(told.notes) < MOST_NOTES:
                told.notes.append(Note(attempt=attempt, step=step, name=name, value=value))


def _take_step(attempt: int, step: int, value: dict[str, Any], told: Told) -> None:
    if value.get("taken") is False:
        told.skipped_steps += 1
    for name in ("loss", "grad_norm", "tokens_per_s", "mfu"):
        if name in value:
            told.curves.add(attempt, name, step, value[name])
    for group, prefix in (("losses", "loss"), ("rates", "rate")):
        numbers = value.get(group)
        if isinstance(numbers, dict):
            for name, number in numbers.items():
                told.curves.add(attempt, f"{prefix}/{name}", step, number)


def _take_shares(value: dict[str, Any], told: Told) -> None:
    """Achieved shares by source over a window of `steps` steps, as `ShareMeter.report` has them: name -> [achieved, wanted]. What is no
    share of a whole is passed over."""
    steps, shares = finite(value.get("steps")), value.get("source")
    if steps is None or steps < 1 or not isinstance(shares, dict):
        return
    for name, pair in list(shares.items())[:1000]:
        share = finite(pair[0]) if isinstance(pair, list) and pair else None
        if share is not None and 0 <= share <= 1:
            sums = told.mixture.setdefault(name, [0.0, 0.0])
            sums[0] += share * steps
            sums[1] += steps


def _parsed(line: bytes) -> tuple[int, str, Any] | None:
    """(step, name, value) of a line that is an event; torn lines and others' are passed over."""
    if not line or len(line) > LONGEST_LINE:
        return None
    try:
        event = json.loads(line)
        step, name = event["step"], event["name"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 10**15 or not isinstance(name, str):
        return None
    return step, name, event.get("value")


def _lines(folder: JobFolder, keys: list[str], told: Told, *, is_cut: bool) -> Iterator[bytes]:
    """Lines across segments, but phases. `is_cut`: segments between are missing, so what is left of one does not belong to the next."""
    rest = b""
    for body in _bodies(folder, keys, told):
        *whole, rest = ((b"" if is_cut else rest) + body).split(b"\n")
        yield from (line for line in whole if _PHASE not in line)
    if rest:
        yield rest


def _bodies(folder: JobFolder, keys: list[str], told: Told) -> Iterator[bytes]:
    """Segments in order, a few read ahead: a bucket answers slowly, and to many at once as fast as to one."""
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="report-events") as pool:
        ahead: deque[Future[bytes]] = deque()
        waiting = iter(keys)
        for key in waiting:
            ahead.append(pool.submit(folder.store.read, key))
            if len(ahead) >= 2 * READ_AT_ONCE:
                yield _body(ahead.popleft(), told)
        while ahead:
            yield _body(ahead.popleft(), told)


def _body(future: "Future[bytes]", told: Told) -> bytes:
    try:
        return future.result()
    except StagecoachError as error:
        if len(told.problems) < 20:
            told.problems.append(str(error))
        return b""
