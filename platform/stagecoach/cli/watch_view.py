"""How `stagecoach watch` looks: a picture on a terminal, plain lines elsewhere."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stagecoach.cli.tables import visible
from stagecoach.cli.watch_state import Attempt, Seen
from stagecoach.explain.sentence import clip, duration

if TYPE_CHECKING:
    from rich.console import RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 40
SHOWN_ATTEMPTS = 6
SILENT_S = 15.0  # progress is published every second or two
BUCKETS = ("init", "restore", "data_wait", "compute", "checkpoint_stall", "evaluation", "other")
_COLOURS = {
    "init": "blue", "restore": "cyan", "data_wait": "yellow", "compute": "green", "checkpoint_stall": "red", "evaluation": "magenta",
    "other": "white",
}  # fmt: skip
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """Three figures and a unit: 12.3k."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """Means of `width` stretches of the curve, from its lowest to its highest; gaps where nothing is finite."""
    count = min(width, len(values))
    edges = [len(values) * place // count for place in range(count + 1)] if count else []
    means: list[float | None] = []
    for place in range(count):
        finite = [value for value in values[edges[place] : edges[place + 1]] if math.isfinite(value)]
        means.append(sum(value / len(finite) for value in finite) if finite else None)
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high / 2 - low / 2 or 1.0  # halves: the whole may be more than a float holds
    heights = [None if mean is None else int((mean / 2 - low / 2) / span * len(BLOCKS)) for mean in means]
    return "".join(" " if height is None else BLOCKS[min(len(BLOCKS) - 1, height)] for height in heights)


def title(seen: Seen) -> str:
    """Which run, which stage."""
    stage = f", stage {seen.place} ({seen.nth} of {seen.of})" if seen.is_stage and seen.of > 1 else ""
    stage = f", stage {seen.place}" if seen.is_stage and not stage and seen.place != seen.name else stage
    return f"{seen.name}{stage}"


def state(seen: Seen) -> str:
    """What it does now."""
    if seen.said is not None:
        return seen.said.cause.replace("_", " ")
    if seen.progress is None:
        return "starting"
    silent = f", silent for {duration(seen.silent_s)}" if seen.silent_s >= SILENT_S else ""
    return f"{seen.progress.phase}{silent}"


def facts(seen: Seen) -> list[str]:
    """Loss, speed and what is left, as far as they are known."""
    progress = seen.progress
    if progress is None:
        return []
    parts = [f"loss {progress.loss:.4f}"] if progress.loss is not None else []
    if progress.tokens_per_s is not None:
        parts.append(f"{short(progress.tokens_per_s)} tokens/s")
    if progress.mfu is not None:
        parts.append(f"MFU {100 * progress.mfu:.1f} %")
    if progress.tokens:
        parts.append(f"{short(progress.tokens)} tokens")
    if progress.images:
        parts.append(f"{short(progress.images)} images")
    parts.append(f"committed {progress.committed_step:,}")
    if progress.eta_s is not None and seen.is_live:
        parts.append(f"{duration(progress.eta_s)} left")
    return parts


def steps(seen: Seen) -> str:
    """`step 130/2000 (6.5 %)`."""
    progress = seen.progress
    if progress is None:
        return ""
    share = f" ({100 * progress.step / progress.steps:.1f} %)" if progress.steps else ""
    return f"step {progress.step:,}/{progress.steps:,}{share}" if progress.steps else f"step {progress.step:,}"


def plain_line(seen: Seen) -> str:
    """One line for a log."""
    attempt = f"attempt {seen.attempts[-1].number}" if seen.attempts else "no attempt yet"
    return visible("  ".join(part for part in (title(seen), attempt, state(seen), steps(seen), *facts(seen)) if part))


def attempt_row(attempt: Attempt) -> tuple[str, str, str, str]:
    """Number, why it was started, from which step, how it ended."""
    start, end = attempt.start, attempt.end
    ended = "runs" if end is None else end.kind.replace("_", " ")
    if end is not None:
        at = f" at step {end.step:,}" if end.step else ""
        lost = f", {end.steps_lost:,} steps lost" if end.steps_lost else ""
        told = f": {clip(end.message)}" if end.message.strip() and end.kind != "done" else ""
        ended += f"{at}{lost}{told}"
    return str(attempt.number), start.why if start else "?", f"{start.resumed_from_step:,}" if start else "?", ended


def shares(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(bucket, seconds, share of all) in their order, those with any time."""
    total = sum(seconds.values())
    known = [*[name for name in BUCKETS if name in seconds], *sorted(set(seconds) - set(BUCKETS))]
    return [(name, seconds[name], seconds[name] / total) for name in known if total > 0 and seconds[name] > 0]


def plain_picture(seen: Seen) -> str:
    """Everything, for `--once` without a terminal."""
    lines = [plain_line(seen)]
    for attempt in seen.attempts[-SHOWN_ATTEMPTS:]:
        number, why, since, ended = attempt_row(attempt)
        lines.append(f"attempt {number}  {why}  from step {since}  {ended}")
    if seen.progress is not None:
        lines += [f"seconds {name}  {spent:.1f}  {100 * share:.1f} %" for name, spent, share in shares(seen.progress.seconds)]
    return "\n".join(visible(line) for line in lines)


# --- on a terminal


def picture(seen: Seen, *, trouble: str = "") -> "RenderableType":
    """The whole view."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text.assemble((visible(title(seen)), "bold"), "  ", (visible(state(seen)), _style(seen)))]
    if seen.progress is not None:
        parts += [_bar(seen), Text(visible("   ".join(facts(seen))))]
    if len(seen.losses) > 1:
        values = [loss for _, loss in seen.losses]
        finite = [value for value in values if math.isfinite(value)] or [math.nan]
        span = f"{max(finite):.3f} to {min(finite):.3f}, steps {seen.losses[0][0]:,} to {seen.losses[-1][0]:,}"
        parts.append(Text.assemble("loss ", (sparkline(values), "cyan"), f"  {span}"))
    if seen.progress is not None and seen.progress.seconds:
        parts.append(_seconds(seen.progress.seconds))
    if seen.attempts:
        parts.append(_attempts(seen.attempts))
    if seen.said is not None:
        parts.append(Text(visible(seen.said.sentence)))
    if trouble:
        parts.append(Text(visible(trouble), style="yellow"))
    return Group(*parts)


def _style(seen: Seen) -> str:
    if seen.said is not None:
        return "green" if seen.exit_code == 0 and seen.is_over else "yellow" if not seen.is_over else "red"
    return "yellow" if seen.silent_s >= SILENT_S or seen.progress is None else "green"


def _bar(seen: Seen) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    assert seen.progress is not None
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=max(1, seen.progress.steps), completed=seen.progress.step, width=SPARKS), Text(steps(seen)))
    return line


def _seconds(seconds: Mapping[str, float]) -> "RenderableType":
    from rich.text import Text

    line = Text("time ")
    for name, _, share in shares(seconds):
        line.append("█" * max(1, round(share * SPARKS)), style=_COLOURS.get(name, "white"))
    for name, spent, share in shares(seconds):
        line.append(f"  {name} {duration(spent)} ({100 * share:.0f} %)", style=_COLOURS.get(name, "white"))
    return line


def _attempts(attempts: Sequence[Attempt]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table("attempt", "why", "from step", "ended", box=None, padding=(0, 2, 0, 0), header_style="dim")
    if len(attempts) > SHOWN_ATTEMPTS:
        table.add_row("…", "", "", f"{len(attempts) - SHOWN_ATTEMPTS} earlier ones")
    for attempt in attempts[-SHOWN_ATTEMPTS:]:
        table.add_row(*(Text(visible(cell)) for cell in attempt_row(attempt)))
    return table
