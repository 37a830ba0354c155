"""Charts as inline SVG: lines over steps, bars, and scores on a scale. Colours are classes of the style sheet, which knows light and dark.

All are drawn on a canvas 380 units wide, about as wide as a phone, so that their text is as large there as the page's small print.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stagecoach.report.curves import Point
from stagecoach.report.html import Content, Markup, el
from stagecoach.report.numbers import count, padded, percent, significant, ticks

WIDTH = 380
HEIGHT = 216
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 18, 36
MARK_LETTER = 7  # how wide one is on a phone, where they are largest
COLOURS = 8  # classes c0 to c7


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `faded` ones are what was done again."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    faded: Sequence[Sequence[Point]] = ()
    with_band: bool = False
    with_dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line: where an attempt went on."""

    step: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to the canvas."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start), 1)


def line_chart(
    title: str, unit: str, lines: Sequence[Line], marks: Sequence[Mark] = (), *, steps: int = 0, note: str = "", from_zero: bool = False
) -> Markup | None:
    """Curves over the steps 0 to `steps` or the last one there is; None when none has a point."""
    lines = [line for line in lines if line.points or line.faded]
    if not lines:
        return None
    every = [point for line in lines for point in (*line.points, *(p for part in line.faded for p in part))]
    values = [v for line in lines for p in (*line.points, *(q for part in line.faded for q in part)) for v in _shown(line, p)]
    low, high = padded(values)
    low = 0.0 if from_zero and min(values) >= 0 else low
    x = Scale(0, max([steps, 1] + [p.step for p in every]), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    drawn = [_grid(x, y, unit), *_marks([mark for mark in marks if 0 < mark.step <= x.high], x)]
    drawn += [_curve(line, x, y, place) for place, line in enumerate(lines)]
    shown = title if not unit else f"{title} ({unit})"
    spoken = f"{shown}. " + " ".join(spoken_line(line) for line in lines)
    return figure(title, canvas(drawn, HEIGHT, spoken), legend=legend(lines) if len(lines) > 1 else None, note=note)


def _shown(line: Line, point: Point) -> tuple[float, ...]:
    return (point.low, point.high) if line.with_band else (point.value,)


def spoken_line(line: Line) -> str:
    """For who cannot see it."""
    if not line.points:
        return f"{line.label}: only steps that were done again."
    first, last = line.points[0], line.points[-1]
    if first is last:
        return f"{line.label}: {significant(first.value)} at step {first.step:.0f}."
    least, most = min(p.low for p in line.points), max(p.high for p in line.points)
    return (
        f"{line.label}: from {significant(first.value)} at step {first.step:.0f} to {significant(last.value)} at step {last.step:.0f}, "
        f"between {significant(least)} and {significant(most)}."
    )


def _grid(x: Scale, y: Scale, unit: str) -> Markup:
    parts: list[Content] = []
    for value in ticks(y.low, y.high, 5):
        at = y(value)
        parts.append(el("line", {"class": "grid", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": at, "y2": at}))
        parts.append(el("text", {"class": "tick", "x": LEFT - 6, "y": at + 4, "text-anchor": "end"}, axis_number(value)))
    for value in ticks(x.low, x.high):
        if value == round(value):
            parts.append(
                el("text", {"class": "tick", "x": x(value), "y": HEIGHT - BOTTOM + 16, "text-anchor": anchor(x(value))}, count(value))
            )
    parts.append(el("line", {"class": "axis", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": HEIGHT - BOTTOM, "y2": HEIGHT - BOTTOM}))
    parts.append(el("text", {"class": "axis-title", "x": WIDTH - RIGHT, "y": HEIGHT - 4, "text-anchor": "end"}, "step"))
    if unit:
        parts.append(el("text", {"class": "axis-title", "x": 2, "y": 10}, unit))
    return el("g", None, parts)


def anchor(at: float) -> str:
    """Of a number below an axis: in the middle, but near an edge of the canvas, which would cut it off."""
    return "start" if at < 24 else "end" if at > WIDTH - 24 else "middle"


def axis_number(value: float) -> str:
    return count(value) if abs(value) >= 10_000 else significant(value)


def _marks(marks: Sequence[Mark], x: Scale) -> list[Markup]:
    """Each label beside its line, where there is room for it, within the plot: the unit stands above it."""
    drawn: list[Markup] = []
    taken = 0.0  # as far as the label before reaches
    for mark in marks:
        at, width = x(mark.step), MARK_LETTER * len(mark.label)
        label = None
        for left, anchored, end in ((at + 3, "start", at + 3), (at - 3 - width, "end", at - 3)):
            if label is None and left >= taken and left + width <= WIDTH:
                label = el("text", {"class": "mark-label", "x": end, "y": TOP + 7, "text-anchor": anchored}, mark.label)
                taken = left + width
        line = el("line", {"class": "mark", "x1": at, "x2": at, "y1": TOP - 4, "y2": HEIGHT - BOTTOM})
        drawn.append(el("g", None, line, label))
    return drawn


def _curve(line: Line, x: Scale, y: Scale, place: int) -> Markup:
    colour = line.colour % COLOURS
    parts: list[Content] = []
    if line.with_band and any(p.high > p.low for p in line.points):
        edge = [(x(p.step), y(p.high)) for p in line.points] + [(x(p.step), y(p.low)) for p in reversed(line.points)]
        parts.append(el("polygon", {"class": f"band f{colour}", "points": " ".join(f"{a},{b}" for a, b in edge)}))
    for part in line.faded:
        parts.append(_path(part, x, y, f"line faded c{colour}"))
    parts.append(_path(line.points, x, y, f"line c{colour} d{place // COLOURS if place >= COLOURS else place % 2 if place > 3 else 0}"))
    if line.with_dots or len(line.points) == 1:
        parts += [el("circle", {"class": f"dot f{colour}", "cx": x(p.step), "cy": y(p.value), "r": 3}) for p in line.points]
    return el("g", None, el("title", None, spoken_line(line)), parts)


def _path(found: Sequence[Point], x: Scale, y: Scale, kind: str) -> Markup | None:
    if not found:
        return None
    if len(found) == 1:
        return el("circle", {"class": f"dot {kind}", "cx": x(found[0].step), "cy": y(found[0].value), "r": 2})
    return el("polyline", {"class": kind, "points": " ".join(f"{x(p.step)},{y(p.value)}" for p in found)})


def canvas(drawn: Sequence[Content], height: float, spoken: str) -> Markup:
    """The SVG itself, as wide as its figure."""
    return el("svg", {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": spoken}, drawn)


def figure(title: str, drawing: Content, *, unit: str = "", legend: Content = None, note: str = "", wide: bool = False) -> Markup:
    """A chart with its title above it; what its colours mean, and what one should know, below."""
    caption = el("figcaption", None, el("span", {"class": "title"}, title), el("span", {"class": "unit"}, unit) if unit else None)
    under = el("p", {"class": "note"}, note) if note else None
    return el("figure", {"class": "wide" if wide else None}, caption, drawing, legend, under)


def swatch(kind: str) -> Markup:
    """A dab of colour before a word."""
    return el(
        "svg",
        {"class": "swatch", "viewBox": "0 0 12 12", "aria-hidden": "true"},
        el("rect", {"class": kind, "width": 12, "height": 12, "rx": 3}),
    )


def legend(lines: Sequence[Line]) -> Markup:
    entries = [el("li", None, swatch(f"f{line.colour % COLOURS}"), line.label) for line in lines]
    return el("ul", {"class": "legend"}, entries)


# --- bars


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a stacked bar."""

    label: str
    value: float
    colour: int


def stacked_bars(
    title: str, unit: str, bars: Sequence[tuple[str, Sequence[Piece]]], *, legend: Content, spoken: str, note: str = ""
) -> Markup:
    """One bar below the other, each with its name above it, on one scale."""
    most = max((sum(piece.value for piece in pieces) for _, pieces in bars), default=0.0) or 1.0
    row = 34
    drawn: list[Content] = []
    for place, (name, pieces) in enumerate(bars):
        top, left = place * row, 2.0
        drawn.append(el("text", {"class": "bar-name", "x": 2, "y": top + 12}, name))
        for piece in pieces:
            width = round(piece.value / most * (WIDTH - 4), 1)
            if width > 0:
                drawn.append(
                    el(
                        "rect",
                        {"class": f"f{piece.colour}", "x": round(left, 1), "y": top + 17, "width": width, "height": 12},
                        el("title", None, piece.label),
                    )
                )
            left += width
    return figure(title, canvas(drawn, len(bars) * row, spoken), unit=unit, legend=legend, note=note)


@dataclass(frozen=True, kw_only=True)
class ShareRow:
    """A share that was asked for, and the one that came of it."""

    label: str
    asked: float
    achieved: float | None


def share_bars(title: str, unit: str, rows: Sequence[ShareRow], *, legend: Content, note: str = "") -> Markup:
    """A row for each: the wanted share outlined, the achieved one filled inside."""
    most = max([row.asked for row in rows] + [row.achieved or 0.0 for row in rows], default=0.0) or 1.0
    x, height = Scale(0.0, most, 2, WIDTH - 3), 32
    drawn: list[Content] = []
    for place, row in enumerate(rows):
        top = place * height
        told = percent(row.asked) + (f" · {percent(row.achieved)}" if row.achieved is not None else "")
        drawn.append(el("text", {"class": "bar-name", "x": 2, "y": top + 12}, cut(row.label, 30)))
        drawn.append(el("text", {"class": "bar-value", "x": WIDTH - 3, "y": top + 12, "text-anchor": "end"}, told))
        if row.achieved is not None:
            drawn.append(el("rect", {"class": "f0", "x": 2, "y": top + 17, "width": round(x(row.achieved) - 2, 1), "height": 9, "rx": 2}))
        drawn.append(
            el("rect", {"class": "open", "x": 2, "y": top + 17, "width": max(1.0, round(x(row.asked) - 2, 1)), "height": 9, "rx": 2})
        )
    spoken = f"{title}, {unit}. " + " ".join(
        f"{row.label}: asked {percent(row.asked)}" + (f", achieved {percent(row.achieved)}." if row.achieved is not None else ".")
        for row in rows
    )
    return figure(title, canvas(drawn, len(rows) * height, spoken), unit=unit, legend=legend, note=note)


def cut(text: str, characters: int) -> str:
    """Its beginning, where it would run into what stands beside it."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


# --- scores on a scale


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A score with its interval, and what it is compared with. Values on the chart's scale."""

    label: str
    value: float
    low: float
    high: float
    chance: float | None = None
    blind: float | None = None
    parent: float | None = None
    kind: str = "plain"  # good, bad or plain
    spoken: str = ""


def dot_chart(title: str, unit: str, dots: Sequence[Dot], *, legend: Content = None, note: str = "") -> Markup:
    """A row for each score: the interval as a bar, chance as a tick, image-blind optimum as a diamond, the parent as a ring."""
    numbers = [v for dot in dots for v in (dot.value, dot.high, dot.low, dot.chance, dot.blind, dot.parent) if v is not None]
    high = max([1.0, *numbers])
    row, top = 36, 4
    bottom = top + len(dots) * row
    x = Scale(min([0.0, *numbers]), high, 10, WIDTH - 14)
    drawn: list[Content] = []
    for value in ticks(x.low, x.high, 5):
        drawn.append(el("line", {"class": "grid", "x1": x(value), "x2": x(value), "y1": top, "y2": bottom}))
        shown = f"{100 * value:.0f} %" if unit == "share" else significant(value)
        drawn.append(el("text", {"class": "tick", "x": x(value), "y": bottom + 15, "text-anchor": anchor(x(value))}, shown))
    drawn += [_dot_row(dot, x, top + place * row, unit) for place, dot in enumerate(dots)]
    spoken = f"{title}. " + " ".join(dot.spoken for dot in dots)
    return figure(title, canvas(drawn, bottom + 22, spoken), legend=legend, note=note)


def _dot_row(dot: Dot, x: Scale, top: float, unit: str) -> Markup:
    at = top + 25
    shown = f"{100 * dot.value:.0f} %" if unit == "share" else significant(dot.value)
    width = max(1.0, round(x(dot.high) - x(dot.low), 1))
    parts: list[Content] = [
        el("title", None, dot.spoken),
        el("text", {"class": "bar-name", "x": x.start, "y": top + 13}, cut(dot.label, 34)),
        el("text", {"class": f"bar-value t-{dot.kind}", "x": x.end, "y": top + 13, "text-anchor": "end"}, shown),
        el("line", {"class": "axis faint", "x1": x.start, "x2": x.end, "y1": at, "y2": at}),
        el("rect", {"class": f"interval i-{dot.kind}", "x": x(dot.low), "y": at - 3, "width": width, "height": 6, "rx": 3}),
    ]  # fmt: skip
    if dot.chance is not None:
        parts.append(el("line", {"class": "chance", "x1": x(dot.chance), "x2": x(dot.chance), "y1": at - 7, "y2": at + 7}))
    if dot.blind is not None:
        b = x(dot.blind)
        parts.append(el("polygon", {"class": "blind", "points": f"{b},{at - 6} {b + 5},{at} {b},{at + 6} {b - 5},{at}"}))
    if dot.parent is not None:
        parts.append(el("circle", {"class": "parent", "cx": x(dot.parent), "cy": at, "r": 5}))
    parts.append(el("circle", {"class": f"score s-{dot.kind}", "cx": x(dot.value), "cy": at, "r": 4.5}))
    return el("g", None, parts)
