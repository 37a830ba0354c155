"""The figures of `faults.py` as the table of workloads/results/faults.md, with what they were measured on."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent


def write_table(path: Path, figures: dict[str, Any], command: str) -> None:
    """Replaces the page."""
    replace_page(path, page(figures, command))


def replace_page(path: Path, lines: Iterator[str]) -> None:
    """In one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.rename(path)


def page(figures: dict[str, Any], command: str) -> Iterator[str]:
    """The lines. Made from the figures alone: what was not run has no row."""
    yield "# Faults on real processes"
    yield ""
    yield f"`{command}`, {datetime.date.today():%Y-%m-%d}, commit {commit()}, {machine()}, gloo."
    yield f"The machine's load was {figures['load_before']:.1f} before and {figures['load_after']:.1f} after, which holds what this adds."
    yield f"Every restart waits for `import torch`: {figures['import_torch_s']:.2f} s in this run, the median of three. Exact says that the"
    yield "state after the last kill equals that of a run that was never touched. Written by the script itself, budgets from"
    yield "architecture.md section 11 and reliability.md section 8."
    yield ""
    yield "| fault | tries | figure | limit | met |"
    yield "| --- | --- | --- | --- | --- |"
    for name, rows in ROWS.items():
        if name in figures:
            yield from rows(figures[name])


def row(what: str, tries: int, figure: str, limit: str, met: bool) -> str:
    return f"| {what} | {tries} | {figure} | {limit} | {'yes' if met else '**no**'} |"


def times(spread: dict[str, float]) -> str:
    return f"p50 {spread['p50']:.2f} s, p95 {spread['p95']:.2f} s, max {spread['max']:.2f} s"


def kills(found: dict[str, Any]) -> Iterator[str]:
    for ranks, one in found.items():
        exact = "exact" if one["exact"] else "NOT exact"
        what = f"F01 SIGKILL of a rank → first new step, in place, {ranks}"
        yield row(what, one["tries"], f"{times(one['kill_to_new_step_s'])}; {exact}", f"p95 ≤ {one['budget_p95_s']:g} s", one["met"])
        yield row(f"the same → no process of the attempt left, {ranks}", one["tries"], times(one["kill_to_everything_ended_s"]), "", True)


def hangs(found: dict[str, Any]) -> Iterator[str]:
    what = f"F04, F05 hang (SIGSTOP, held GIL, livelock, spin) → first new step, deadline {found['deadline_s']:g} s"
    figure = f"{times(found['hang_to_new_step_s'])}; hung rank named {found['rank_named']} of {found['tries']}"
    yield row(what, found["tries"], figure, f"p95 ≤ {found['budget_p95_s']:g} s", found["met"])


def classes(found: dict[str, Any]) -> Iterator[str]:
    what = "F06, F07, F09, F13, F15, F17 the attempt's kind, first rank and exit code"
    yield row(what, found["tries"], f"right in {found['right']} of {found['tries']}", "100 % of ≥ 50", found["met"])


def orphans(found: dict[str, Any]) -> Iterator[str]:
    what = f"F03, F14, F55 `kill -9` of {', '.join(found['victims'])} → left 2 s later"
    figure = f"{len(found['left'])}; next start clean {found['clean_starts']} of {found['tries']}"
    yield row(what, found["tries"], figure, "0", found["met"])


def rendezvous(found: dict[str, Any]) -> Iterator[str]:
    figure = f"{found['came_up']} of {found['tries']} came up, exact"
    yield row("F11 SIGKILL of a rank while it starts or meets the others", found["tries"], figure, "all", found["met"])


def stops(found: dict[str, Any]) -> Iterator[str]:
    figure = f"{found['saves_fired']} saves, 0 steps lost in them; exit 143 within {times(found['sigterm_to_exit_s'])}"
    yield row("F15, F16 SIGTERM while training", found["tries"], figure, "all save", found["met"])


ROWS = {"kills": kills, "hangs": hangs, "classes": classes, "orphans": orphans, "rendezvous": rendezvous, "stops": stops}


def commit() -> str:
    """The commit that ran, and whether files differed from it."""
    head, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", "platform", "workloads", "benchmarks")
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def machine() -> str:
    """Processor, cores, memory, and the versions that matter."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}, torch {version('torch')}"
