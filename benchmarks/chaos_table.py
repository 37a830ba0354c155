"""The figures of `chaos.py` as workloads/results/chaos.md, with what they were measured on. Made from the figures alone."""

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults_table import ROOT, machine, replace_page, row
from stagecoach.testing.chaos import GRACE_S, IN_PLACE, PHASES, STARTING

PAGE = ROOT / "workloads" / "results" / "chaos.md"
WAYS = {
    "rank": "one rank", "ranks": "all ranks", "saver": "saving process", "supervisor": "supervisor",
    "term0": "SIGTERM, 0 s", "term1": "SIGTERM, 1 s", "term5": "SIGTERM, 5 s",
}  # fmt: skip
IN_PLACE_S = {"2 ranks": 4.0, "4 ranks": 7.0}
NEW_SUPERVISOR_S = 20.0


def write_table(path: Path, figures: dict[str, Any], command: str) -> None:
    """Replaces the page."""
    replace_page(path, page(figures, command))


def page(figures: dict[str, Any], command: str) -> Iterator[str]:
    yield "# Kills at every phase of training"
    yield ""
    yield f"`{command}`, {datetime.date.today():%Y-%m-%d}, commit {', '.join(figures['commits'])}, {machine()}, gloo."
    yield f"The machine's load was {figures['load_before']:.1f} before and {figures['load_after']:.1f} after; times want two quiet cores."
    yield "Exact: weights digest, loss and hash of the multiset of sample ids at every step, tokens and images of the whole run equal"
    yield "those of a run that nobody touched, bit for bit; of two such runs the second equals the first. Written by the script itself."
    yield ""
    yield from outcome(figures)
    yield ""
    yield from by_phase(figures["kills"])
    yield ""
    yield from by_place(figures["kills"])
    if figures["wrong"]:
        yield ""
        yield "## What was not exact"
        yield ""
        yield from (f"* {text[:500]}" for text in figures["wrong"])


def outcome(figures: dict[str, Any]) -> Iterator[str]:
    """Each limit and what was measured."""
    kills, count = figures["kills"], figures["count"]
    yield "| what | tries | figure | limit | met |"
    yield "| --- | --- | --- | --- | --- |"
    whole = figures["done"] == figures["runs"]
    run = "" if whole else f"; {figures['done']} of {figures['runs']} runs, the rest was not begun"
    yield row(
        "kills, each followed by an exact end", count, f"{figures['exact']} of {count}{run}", "all", figures["exact"] == count and whole
    )
    yield row(
        "torn or mixed checkpoint offered after a kill", figures["offered"], str(figures["offered_torn"]), "0", not figures["offered_torn"]
    )
    if torn := figures["torn"]:
        figure = f"{torn['torn']} offered; {torn['left_torn']} kills left a torn one behind, {torn['committed_steps']} steps were committed"
        yield row("of these, in a tight loop of saves by two ranks", torn["kills"], figure, "0 of ≥ 500", not torn["torn"])
    for ranks, limit in IN_PLACE_S.items():
        mine = [each for each in kills if each["way"] in IN_PLACE and places(each) == ranks and each["phase"] != "restart"]
        warm, cold = ([each for each in mine if (each["phase"] in STARTING) == early] for early in (False, True))
        yield from times(f"kill → first new step, in place, {ranks}", warm, limit)
        yield from times(f"the same, killed before it had trained: no agent is warm yet, {ranks}", cold, None)
    yield from times(
        "supervisor killed → first new step under a new one",
        [each for each in kills if each["way"] == "supervisor" and places(each)],
        NEW_SUPERVISOR_S,
    )
    for way in GRACE_S:
        if lost := figures["steps_lost"].get(way):
            none, most = sum(steps == 0 for steps in lost), max(lost)
            yield f"| {WAYS[way]} of grace: steps lost | {len(lost)} | 0 in {none} of them, at most {most} |  |  |"


def places(each: dict[str, Any]) -> str:
    """Which kills a time is stated for: of one node, over file://."""
    return {"file": "2 ranks", "4 ranks": "4 ranks"}.get(each["place"], "")


def times(what: str, kills: list[dict[str, Any]], limit: float | None) -> Iterator[str]:
    seconds = sorted(each["to_new_step_s"] for each in kills if each["to_new_step_s"] is not None)
    if seconds:
        p50, p95 = (seconds[math.ceil(share * len(seconds)) - 1] for share in (0.5, 0.95))
        figure = f"p50 {p50:.2f} s, p95 {p95:.2f} s, max {seconds[-1]:.2f} s"
        bare = f"| {what} | {len(seconds)} | {figure} |  |  |"
        yield bare if limit is None else row(what, len(seconds), figure, f"p95 ≤ {limit:g} s", p95 <= limit)


def by_phase(kills: list[dict[str, Any]]) -> Iterator[str]:
    """Exact / all, for each phase and way."""
    ways = [way for way in WAYS if any(each["way"] == way for each in kills)]
    yield f"| phase | {' | '.join(WAYS[way] for way in ways)} | all |"
    yield f"| --- |{' --- |' * (len(ways) + 1)}"
    for phase in PHASES:
        if of_phase := [each for each in kills if each["phase"] == phase]:
            cells = [share([each for each in of_phase if each["way"] == way]) for way in ways]
            yield f"| {phase.replace('_', ' ')} | {' | '.join([*cells, share(of_phase)])} |"


def by_place(kills: list[dict[str, Any]]) -> Iterator[str]:
    yield "| where | kills, exact / all |"
    yield "| --- | --- |"
    named = {
        "file": "one node, 2 ranks, file://",
        "two nodes": "two nodes' supervisors, a rank each, file://",
        "S3": "one node, 2 ranks, S3",
    }
    for place in dict.fromkeys(each["place"] for each in kills):
        yield f"| {named.get(place, f'one node, {place}, file://')} | {share([each for each in kills if each['place'] == place])} |"


def share(kills: list[dict[str, Any]]) -> str:
    return f"{sum(each['exact'] for each in kills)} / {len(kills)}" if kills else ""
