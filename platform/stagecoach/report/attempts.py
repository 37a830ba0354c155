"""Every attempt: why it was started, how far it came, why it stopped and what that cost."""

from stagecoach.explain.records import AttemptFacts
from stagecoach.report.charts import WIDTH, Scale, anchor, canvas, figure, swatch
from stagecoach.report.events import Note
from stagecoach.report.html import Content, Markup, el
from stagecoach.report.numbers import count, duration, ticks
from stagecoach.report.story import StageStory, readable_time, seconds_between
from stagecoach.report.tables import NONE, Column, pill, table

MOST_ROWS = 60
MOST_BARS = 30
MOST_MESSAGE = 240
GOOD = {"done"}
CALM = {"stopped", "preempted", "cancelled"}
NOTE_WORDS = {
    "rewound": "went back to an earlier step", "skipped": "step skipped", "straggler": "straggler",
    "quarantined": "sample left out", "checkpoint_quarantined": "checkpoint set aside", "replicas_differ": "replicas differed",
    "telemetry_lost": "TensorBoard entries lost",
}  # fmt: skip


def attempts_part(stage: StageStory) -> Content:
    """The timeline, the table, and what happened on the way."""
    if not stage.attempts:
        return None
    shown = stage.attempts[-MOST_ROWS:]
    rows = [_row(stage, attempt) for attempt in shown]
    columns = (
        Column("attempt"), Column("started as"), Column("ended"), Column("steps", True), Column("committed", True), Column("lost", True),
        Column("took", True), Column("what happened", is_long=True),
    )  # fmt: skip
    left_out = len(stage.attempts) - len(shown)
    return [
        el("h3", None, "Attempts"),
        el("p", {"class": "note"}, f"{left_out} earlier attempts are not listed.") if left_out else None,
        table("Attempts of this stage", columns, rows),
        notes_part(stage),
    ]


def _row(stage: StageStory, attempt: AttemptFacts) -> list[Content]:
    start, end = attempt.start, attempt.end
    first, last = stage.resumed_from(attempt), stage.last_step(attempt)
    took = seconds_between(start.started_at, end.ended_at) if start and end else None
    return [
        f"#{attempt.number}",
        [start.why, el("span", {"class": "when"}, readable_time(start.started_at))] if start else NONE,
        ending_pill(attempt),
        f"{first:,} → {last:,}",
        f"{end.committed_step:,}" if end else NONE,
        f"{end.steps_lost:,}" if end else NONE,
        duration(took) if took is not None else NONE,
        _message(attempt),
    ]


def ending_pill(attempt: AttemptFacts) -> Markup:
    """How it ended, in a word."""
    if attempt.end is None:
        return pill("no end yet", "warn")
    kind = attempt.end.kind
    return pill(kind.replace("_", " "), "good" if kind in GOOD else "warn" if kind in CALM else "bad")


def _message(attempt: AttemptFacts) -> str:
    end = attempt.end
    if end is None:
        return ""
    where = f" (on {end.first_failed_node})" if end.first_failed_node else ""
    message = end.message if len(end.message) <= MOST_MESSAGE else f"{end.message[:MOST_MESSAGE]}…"
    return f"{message}{where}" if message else ""


def timeline(stage: StageStory) -> Markup:
    """A bar for each attempt over the steps it made: safe ones, and those that were lost."""
    shown = stage.attempts[-MOST_BARS:]
    last = max([stage.steps, *(stage.last_step(a) for a in shown)], default=0) or 1
    x, row = Scale(0, last, 2, WIDTH - 4), 32
    drawn: list[Content] = []
    for value in ticks(0, last):
        if value == round(value):
            drawn.append(el("line", {"class": "grid", "x1": x(value), "x2": x(value), "y1": 0, "y2": len(shown) * row}))
            below = len(shown) * row + 14
            drawn.append(el("text", {"class": "tick", "x": x(value), "y": below, "text-anchor": anchor(x(value))}, count(value)))
    drawn += [_bar(stage, attempt, x, place * row) for place, attempt in enumerate(shown)]
    spoken = "Attempts over steps. " + " ".join(_spoken(stage, attempt) for attempt in shown)
    entries = [el("li", None, swatch("done"), "kept"), el("li", None, swatch("lost"), "lost")]
    if any(attempt.end is None for attempt in shown):
        entries.append(el("li", None, swatch("unsafe"), "not ended yet"))
    return figure("Attempts", canvas(drawn, len(shown) * row + 20, spoken), unit="steps", legend=el("ul", {"class": "legend"}, entries))


def _bar(stage: StageStory, attempt: AttemptFacts, x: Scale, top: float) -> Markup:
    first, last = stage.resumed_from(attempt), stage.last_step(attempt)
    safe = min(last, max(first, attempt.end.committed_step)) if attempt.end else first
    ended = attempt.end.kind.replace("_", " ") if attempt.end else "no end yet"
    parts: list[Content] = [
        el("title", None, _spoken(stage, attempt)),
        el("text", {"class": "bar-name", "x": 4, "y": top + 12}, f"#{attempt.number} {ended}"),
    ]  # fmt: skip
    for start, stop, kind in ((first, safe, "done"), (safe, last, "lost" if attempt.end else "unsafe")):
        if stop > start:
            parts.append(
                el(
                    "rect",
                    {"class": kind, "x": x(start), "y": top + 17, "width": max(1.5, round(x(stop) - x(start), 1)), "height": 9, "rx": 2},
                )
            )
    if last == first:
        parts.append(el("text", {"class": "quiet", "x": 4, "y": top + 26}, f"no step made behind step {first}"))
    return el("g", None, parts)


def _spoken(stage: StageStory, attempt: AttemptFacts) -> str:
    first, last = stage.resumed_from(attempt), stage.last_step(attempt)
    if attempt.end is None:
        return f"Attempt {attempt.number}: from step {first} to {last}, no end yet."
    return (
        f"Attempt {attempt.number}: {attempt.end.kind.replace('_', ' ')}, from step {first} to {last}, {attempt.end.steps_lost} steps lost."
    )


def notes_part(stage: StageStory) -> Content:
    """Skipped steps, rewinds, stragglers and the like, as rank 0 told them."""
    if not stage.told.notes:
        return None
    entries = [el("li", None, _note(note)) for note in stage.told.notes[:40]]
    more = stage.told.notes_seen - len(entries)
    last = el("p", {"class": "note"}, f"{more} more are in the events.") if more > 0 else None
    return el(
        "details",
        None,
        el("summary", None, f"On the way: {stage.told.notes_seen} things that rank 0 noted"),
        el("ul", {"class": "notes"}, entries),
        last,
    )


def _note(note: Note) -> str:
    value = (
        ", ".join(f"{key} {told}" for key, told in note.value.items() if key != "sample_ids")
        if isinstance(note.value, dict)
        else str(note.value)
    )
    return f"step {note.step}, attempt {note.attempt}: {NOTE_WORDS.get(note.name, note.name)}{f' ({value[:300]})' if value else ''}"
