"""How training went: loss, learning rate, speed, where the time went, what was drawn."""

from stagecoach.report.attempts import timeline
from stagecoach.report.charts import COLOURS, Line, Mark, Piece, ShareRow, line_chart, share_bars, stacked_bars, swatch
from stagecoach.report.curves import Curves
from stagecoach.report.html import Content, Markup, el
from stagecoach.report.numbers import duration, percent
from stagecoach.report.story import StageStory
from stagecoach.report.tables import NONE, Column, digest, table

BUCKETS = {  # in the order of a bar, with its colour
    "compute": 0, "data_wait": 1, "checkpoint_stall": 4, "evaluation": 3, "restore": 5, "init": 2, "other": 7,
}  # fmt: skip
WORDS = {"data_wait": "waiting for data", "checkpoint_stall": "checkpoint stall", "init": "starting", "restore": "restoring"}
MOST_LINES = 8
MOST_BARS = 12
MOST_SOURCES = 24
MARKS_APART = 0.2  # of the axis: the width of `#123–145`


def training_part(stage: StageStory) -> Content:
    """Charts of one stage; a sentence where nothing was trained yet."""
    marks = attempt_marks(stage)
    timed = [seconds_chart(stage), timeline(stage) if len(stage.attempts) > 1 else None, mixture_chart(stage)]
    charts = [chart for chart in (*_losses(stage, marks), *_speed(stage, marks), *timed) if chart is not None]
    parts: list[Content] = [el("h3", None, "Training")]
    if not charts:
        return [*parts, el("p", {"class": "soft"}, "No step was made yet.")]
    parts.append(el("div", {"class": "charts"}, charts))
    parts.append(_how_read(stage))
    return parts


def attempt_marks(stage: StageStory) -> list[Mark]:
    """Where attempts went on, but the first that made steps. Those whose numbers would overlap share a line, where the first went on."""
    by_step: dict[int, list[int]] = {}
    begun = sorted((stage.resumed_from(a), a.number) for a in stage.attempts if stage.last_step(a) > stage.resumed_from(a))
    place = 0
    for step, number in begun:
        if place == 0 or step - place >= MARKS_APART * stage.steps:
            place = step
        by_step.setdefault(place, []).append(number)
    if len(begun) < 2:
        return []
    return [
        Mark(step=step, label=f"#{numbers[0]}" if len(numbers) == 1 else f"#{min(numbers)}–{max(numbers)}")
        for step, numbers in by_step.items()
    ]


def _losses(stage: StageStory, marks: list[Mark]) -> list[Markup | None]:
    curves = stage.told.curves
    redone = (
        "Dashed: steps that were lost and made again; the line is the attempt that won." if any(True for _ in curves.redone("loss")) else ""
    )
    band = "The shaded band spans the steps behind a point." if curves.width > 1 else ""
    total = _line(curves, "loss", "training loss", 0, with_band=True)
    validation = _line(curves, "validation/loss", "validation loss", 1, with_dots=True)
    charts = [
        line_chart(
            "Loss",
            "nats per target",
            [line for line in (total, validation) if line],
            marks,
            steps=stage.steps,
            note=f"{redone} {band}".strip(),
        )
    ]
    for kind, title in (("kind", "Loss by kind of sample"), ("category", "Loss by category")):
        charts.append(_group(stage, f"loss/{kind}/", title, marks))
        charts.append(_group(stage, f"validation/{kind}/", f"Validation {title[0].lower()}{title[1:]}", marks, with_dots=True))
    extra = [
        line for place, name in enumerate(("z", "router_load_balance", "router_z")) if (line := _line(curves, f"loss/{name}", name, place))
    ]
    extra = [line for line in extra if any(point.value for point in line.points)]
    charts.append(line_chart("Auxiliary losses", "", extra, marks, steps=stage.steps))
    return charts


def _speed(stage: StageStory, marks: list[Mark]) -> list[Markup | None]:
    curves = stage.told.curves
    rates = curves.names("rate/")
    lines = [line for place, name in enumerate(rates[:MOST_LINES]) if (line := _line(curves, name, name.removeprefix("rate/"), place))]
    same = len(lines) > 1 and all(line.points == lines[0].points for line in lines)
    if same:
        lines = [Line(label=" = ".join(line.label for line in lines), points=lines[0].points)]
    norm = _line(curves, "grad_norm", "gradient norm", 3, with_band=True)
    tokens = _line(curves, "tokens_per_s", "throughput", 2)
    mfu = _line(curves, "mfu", "MFU", 4, scale=100.0)
    peak = f"of {stage.plan.resources.hardware}'s peak" if stage.plan is not None else ""
    return [
        line_chart(
            "Learning rate", "", lines, marks, steps=stage.steps, from_zero=True, note=f"{lines[0].label}: one rate" if same else ""
        ),
        line_chart("Gradient norm", "before clipping", [norm] if norm else [], marks, steps=stage.steps, from_zero=True),
        line_chart("Throughput", "tokens/s", [tokens] if tokens else [], marks, steps=stage.steps, from_zero=True),
        line_chart(
            "Model FLOPs utilisation",
            "%",
            [mfu] if mfu else [],
            marks,
            steps=stage.steps,
            from_zero=True,
            note=peak and f"Per cent {peak}.",
        ),
    ]


def _line(
    curves: Curves, name: str, label: str, colour: int, *, with_band: bool = False, with_dots: bool = False, scale: float = 1.0
) -> Line | None:
    kept, redone = curves.kept(name), list(curves.redone(name))
    if not kept and not redone:
        return None
    if scale != 1.0:
        kept = [type(p)(step=p.step, value=p.value * scale, low=p.low * scale, high=p.high * scale) for p in kept]
        redone = [[type(p)(step=p.step, value=p.value * scale, low=p.low * scale, high=p.high * scale) for p in part] for part in redone]
    return Line(label=label, points=kept, faded=redone, colour=colour, with_band=with_band, with_dots=with_dots)


def _group(stage: StageStory, prefix: str, title: str, marks: list[Mark], *, with_dots: bool = False) -> Markup | None:
    curves = stage.told.curves
    names = curves.names(prefix)
    lines = [
        line for place, name in enumerate(names[:MOST_LINES])
        if (line := _line(curves, name, name.removeprefix(prefix), place, with_dots=with_dots))
    ]  # fmt: skip
    hidden = len(names) - MOST_LINES
    return line_chart(
        title,
        "nats per target",
        lines,
        marks,
        note=f"{hidden} more are not shown: {', '.join(names[MOST_LINES:])[:300]}" if hidden > 0 else "",
    )


def _how_read(stage: StageStory) -> Markup | None:
    told, says = stage.told, []
    if told.curves.width > 1:
        sampled = f", of which every {told.stride}th was read" if told.stride > 1 else ""
        says.append(f"Each point is the mean of {told.curves.width} steps{sampled}.")
    if told.every > 1:
        says.append(f"The run is so long that one of {told.every} segments of its events was read.")
    if told.skipped_steps:
        says.append(f"{told.skipped_steps} steps were skipped by the guard: no weight changed in them.")
    if told.curves.not_finite:
        says.append(f"{told.curves.not_finite} values were not finite and are not drawn.")
    return el("p", {"class": "note"}, " ".join(says)) if says else None


# --- seconds by bucket


def seconds_chart(stage: StageStory) -> Markup | None:
    """Where the time went, by attempt, on rank 0's clock."""
    rows = [(attempt.number, found) for attempt in stage.attempts if sum((found := stage.seconds(attempt)).values()) > 0]
    if not rows:
        return None
    shown = rows[-MOST_BARS:]
    total: dict[str, float] = {}
    for _, found in rows:
        for name, spent in found.items():
            total[name] = total.get(name, 0.0) + spent
    names = [*BUCKETS, *sorted(set(total) - set(BUCKETS))]
    whole = sum(total.values())
    bars = [(f"attempt {number} · {duration(sum(found.values()))}", _pieces(names, found)) for number, found in shown]
    told = {name: f"{_word(name)} {duration(total[name])}" for name in names if total.get(name, 0.0) > 0}
    entries = [
        el("li", None, swatch(f"f{BUCKETS.get(name, COLOURS - 1)}"), f"{text} ({percent(total[name] / whole)})")
        for name, text in told.items()
    ]
    spoken = "Seconds by bucket, all attempts: " + ", ".join(told.values())
    note = f"The last {MOST_BARS} of {len(rows)} attempts; the figures are of all." if len(rows) > MOST_BARS else ""
    return stacked_bars(
        "Where the time went", "seconds by bucket", bars, legend=el("ul", {"class": "legend"}, entries), spoken=spoken, note=note
    )


def _pieces(names: list[str], found: dict[str, float]) -> list[Piece]:
    return [
        Piece(label=f"{_word(name)}: {duration(found[name])}", value=found[name], colour=BUCKETS.get(name, COLOURS - 1))
        for name in names if found.get(name, 0.0) > 0
    ]  # fmt: skip


def _word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


# --- mixture


def achieved_shares(stage: StageStory) -> dict[str, float]:
    """By dataset, over all steps that told it."""
    return {name: total / steps for name, (total, steps) in stage.told.mixture.items() if steps}


def mixture_chart(stage: StageStory) -> Markup | None:
    """What the plan asks for (outlined) and what was drawn (filled)."""
    if stage.plan is None:
        return None
    asked = sorted(((weight.weight, weight.dataset) for weight in stage.plan.data.mixture.weights), reverse=True)[:MOST_SOURCES]
    achieved = achieved_shares(stage)
    rows = [ShareRow(label=name, asked=weight, achieved=achieved.get(name)) for weight, name in asked]
    entries = [el("li", None, swatch("open"), "asked")]
    entries += [el("li", None, swatch("f0"), "achieved")] if achieved else []
    note = "" if achieved else "Achieved shares are not in this run's events."
    return share_bars(
        "Mixture",
        f"share of {stage.plan.data.mixture.unit}{': asked · achieved' if achieved else ''}",
        rows,
        legend=el("ul", {"class": "legend"}, entries),
        note=note,
    )


def mixture_table(stage: StageStory) -> Content:
    """The same in figures, with what each dataset is."""
    plan = stage.plan
    if plan is None:
        return None
    achieved = achieved_shares(stage)
    of_name = {dataset.name: dataset for dataset in plan.data.datasets}
    rows = []
    for weight in sorted(plan.data.mixture.weights, key=lambda weight: -weight.weight):
        dataset, share = of_name.get(weight.dataset), achieved.get(weight.dataset)
        rows.append(
            (
                weight.dataset,
                dataset.kind if dataset else NONE,
                dataset.category if dataset else NONE,
                percent(weight.weight),
                percent(share) if share is not None else NONE,
                f"{100 * (share - weight.weight):+.1f} points" if share is not None else NONE,
                digest(dataset.fingerprint if dataset else None),
            )
        )
    columns = (
        Column("dataset"), Column("kind"), Column("category"), Column("asked", True), Column("achieved", True), Column("difference", True),
        Column("fingerprint"),
    )  # fmt: skip
    listed = table(f"Mixture, shares of {plan.data.mixture.unit}", columns, rows)
    return el("details", None, el("summary", None, f"Mixture of {len(rows)} datasets as a table"), listed)
