"""What Prefect shows of a run, as plain values: tables, a summary in markdown, a loss plot in SVG. Reads the bucket; knows no Prefect."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from stagecoach.contract.job import AttemptEnd, AttemptStart, Progress
from stagecoach.contract.ledger import JobFolder
from stagecoach.explain.resolve import find
from stagecoach.report.page import build_page
from stagecoach.report.story import read_story
from stagecoach.stages import StageResult
from stagecoach.stages.pipeline import PreparedPipeline

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 56, 36  # of the plot, pixels
MOST_POINTS = 400


def says_of(progress: Progress) -> str:
    """One line under a progress bar."""
    parts = [f"step {progress.step:,} of {progress.steps:,}", progress.phase, f"attempt {progress.attempt}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.mfu:
        parts.append(f"MFU {progress.mfu:.1%}")
    parts.append(f"committed {progress.committed_step:,}")
    if progress.eta_s is not None:
        minutes, seconds = divmod(int(progress.eta_s), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return ", ".join(parts)


def stage_rows(prepared: PreparedPipeline) -> list[dict[str, str]]:
    """One row per attempt of every stage, and one for a stage that has none."""
    rows: list[dict[str, str]] = []
    for name in prepared.stages:
        folder = prepared.runs.stage(prepared.run, name)
        numbers = folder.attempt_numbers()
        done = "finished" if folder.stage() is not None else ""
        if not numbers:
            rows.append(row(name, done or "not started"))
        for number in numbers:
            rows.append(attempt_row(name, folder.attempt_start(number), folder.attempt_end(number), folder.progress(number), done))
    return rows


def row(stage: str, state: str, *, attempt: str = "", why: str = "", first: str = "", step: str = "", lost: str = "") -> dict[str, str]:
    return {"stage": stage, "attempt": attempt, "started because": why, "from step": first, "at step": step, "lost": lost, "state": state}


def attempt_row(stage: str, start: AttemptStart | None, end: AttemptEnd | None, progress: Progress | None, done: str) -> dict[str, str]:
    """One attempt."""
    said = f"{end.kind.replace('_', ' ')}{f': {end.message}' if end.message and end.kind != 'done' else ''}" if end else done or "runs"
    step = end.step if end else progress.step if progress else 0
    return row(
        stage, said, attempt=str(start.attempt) if start else "?", why=start.why if start else "?",
        first=f"{start.resumed_from_step:,}" if start else "?", step=f"{step:,}", lost=f"{end.steps_lost:,}" if end else "",
    )  # fmt: skip


def summary_markdown(prepared: PreparedPipeline, results: Sequence[StageResult], trouble: str) -> str:
    """What a run came to."""
    lines = [f"# {prepared.run.run_id}", "", f"Recipe `{prepared.run.recipe}`, kept at `{prepared.runs.store.uri}`.", ""]
    lines += ["| stage | | steps | tokens | attempts | loss | weights |", "|---|---|---:|---:|---:|---:|---|"]
    for result in results:
        one = result.manifest
        loss = f"{one.metrics['loss']:.4f}" if "loss" in one.metrics else ""
        how = "finished before" if result.was_done else "done"
        lines.append(f"| {one.stage} | {how} | {one.steps:,} | {one.tokens:,} | {one.attempts} | {loss} | `{one.weights_digest[:16]}` |")
    missing = [name for name in prepared.stages if name not in {result.manifest.stage for result in results}]
    lines += [f"| {name} | not finished | | | | | |" for name in missing]
    if trouble:
        lines += ["", f"**Stopped:** {trouble}"]
    for result in results:
        folder = result.folder.uri
        links = [f"[checkpoint]({result.manifest.checkpoint.uri})", f"[TensorBoard files]({folder}/tensorboard)"]
        links += [f"[{suite}]({uri})" for suite, uri in sorted(result.manifest.evaluations.items())]
        lines += ["", f"**{result.manifest.stage}**: {', '.join(links)}"]
    run = prepared.run.run_id
    report = prepared.runs.store.uri_of(report_key(run))
    lines += ["", f"[Report]({report}); `stagecoach report {run}` writes it anew, `stagecoach explain {run}` says why something stopped."]
    return "\n".join(lines)


def links_of(prepared: PreparedPipeline, folder: JobFolder) -> dict[str, str]:
    """Where to look: text -> URI."""
    report = prepared.runs.store.uri_of(report_key(prepared.run.run_id))
    return {"TensorBoard files": f"{folder.uri}/tensorboard", "stage folder": folder.uri, "report": report}


def report_key(run_id: str) -> str:
    """Where the run's page lies below the root, as it was when a pipeline last came to an end."""
    return f"runs/{run_id}/report.html"


def write_report(prepared: PreparedPipeline) -> str:
    """Puts the run's page into the bucket, where `links_of` says it is. Returns its URI. Raises what storage raises."""
    run_id = prepared.run.run_id
    story = read_story(find(run_id, root=prepared.runs.store.uri), made_at=datetime.now(UTC).isoformat(timespec="seconds"))
    prepared.runs.store.publish(report_key(run_id), build_page(story))
    return prepared.runs.store.uri_of(report_key(run_id))


def loss_plot(losses: Mapping[int, float], title: str) -> str:
    """The loss by step as an SVG document; thinned to MOST_POINTS, the newest kept."""
    points = sorted(losses.items())
    stride = max(1, len(points) // MOST_POINTS)
    points = points[::-stride][::-1]
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    span, steps_span = (high - low) or 1.0, (steps[-1] - steps[0]) or 1

    def place(step: int, value: float) -> str:
        across = LEFT + (step - steps[0]) / steps_span * (WIDTH - LEFT - 16)
        return f"{across:.1f},{HEIGHT - BOTTOM - (value - low) / span * (HEIGHT - BOTTOM - 36):.1f}"

    line = " ".join(place(step, value) for step, value in points)
    bottom = HEIGHT - BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>'
        f'<path d="M{LEFT} 32V{bottom}H{WIDTH - 16}" fill="none" stroke="#888"/>'
        f'<text x="4" y="40">{high:.3f}</text><text x="4" y="{bottom}">{low:.3f}</text><text x="4" y="{HEIGHT - 8}">nats/token</text>'
        f'<text x="{LEFT}" y="{bottom + 16}">{steps[0]:,}</text>'
        f'<text x="{WIDTH - 16}" y="{bottom + 16}" text-anchor="end">step {steps[-1]:,}</text>'
        f'<polyline points="{line}" fill="none" stroke="#1f5fbf" stroke-width="1.5"/></svg>'
    )


def as_data_url(svg: str) -> str:
    """Shown by a browser without a server to fetch it from."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
