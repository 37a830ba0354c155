"""Many small ranges of one object, turned into few large requests and back."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecoach.storage.errors import OutOfRange


@dataclass(frozen=True)
class Span:
    """One request: bytes start to stop (excluded)."""

    start: int
    stop: int


def plan_spans(ranges: Sequence[tuple[int, int]], *, gap_bytes: int, request_bytes: int) -> list[Span]:
    """Returns the requests, sorted and not overlapping, that together cover all (offset, length) ranges.

    Neighbours no further apart than gap_bytes become one request while it stays within request_bytes; a range larger than that
    is cut. Empty ranges need no request. Raises OutOfRange for a negative offset or length.
    """
    merged: list[list[int]] = []
    for offset, length in sorted(ranges):
        if offset < 0 or length < 0:
            raise OutOfRange(f"range ({offset}, {length}): offset and length must be >= 0")
        if length == 0:
            continue
        stop = offset + length
        if merged and offset - merged[-1][1] <= gap_bytes:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([offset, stop])
    return [span for start, stop in merged for span in _cut(start, stop, request_bytes)]


def _cut(start: int, stop: int, request_bytes: int) -> list[Span]:
    """Cuts into equal pieces, so that no request is a crumb."""
    pieces = -(-(stop - start) // request_bytes)
    size = -(-(stop - start) // pieces)
    return [Span(at, min(at + size, stop)) for at in range(start, stop, size)]


def gather(ranges: Sequence[tuple[int, int]], bodies: Mapping[Span, bytes]) -> list[bytes]:
    """Cuts the bodies of planned spans back into the ranges that were asked for, in their order."""
    spans = sorted(bodies, key=lambda span: span.start)
    return [_slice(offset, length, spans, bodies) for offset, length in ranges]


def _slice(offset: int, length: int, spans: Sequence[Span], bodies: Mapping[Span, bytes]) -> bytes:
    pieces, at, stop = [], offset, offset + length
    index = bisect_right(spans, offset, key=lambda span: span.start) - 1
    while at < stop:
        span = spans[index]
        pieces.append(bodies[span][at - span.start : stop - span.start])
        at, index = span.stop, index + 1
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def scatter(body: bytes, buffers: Sequence[memoryview]) -> None:
    """Fills writable buffers, one after another, with a body as long as all of them."""
    at = 0
    for buffer in buffers:
        buffer[:] = body[at : at + buffer.nbytes]
        at += buffer.nbytes
