"""The grace period against how long saves took: a stop must leave time to finish one."""

import json
from collections.abc import Iterator
from typing import Any

from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.doctor.facts import Fact, Place
from stagecoach.errors import StagecoachError

RUNS = 10  # the newest
SOURCE = "rank-0"  # who tells of saves
SEGMENTS = 20  # of a stage, of 1 MiB at most: enough for many saves, and a long run is not read whole


def check_grace(place: Place) -> Iterator[Fact]:
    """The longest save of the newest runs, plus the margin that the supervisor keeps for itself."""
    grace = place.site.grace_s
    try:
        longest, where = longest_save(Runs.open(place.root))
    except StagecoachError as error:
        yield Fact(check="grace", verdict="unknown", fact=f"saves cannot be read: {error}", do="see the line of the bucket")
        return
    if longest is None:
        yield Fact(
            check="grace",
            verdict="unknown",
            fact=f"grace_s is {grace}; no save was measured under {place.root} yet",
            do="`stagecoach plan RECIPE` estimates a save; run this again after the first checkpoint",
        )
        return
    margin = min(5.0, grace / 4)
    fact = f"grace_s is {grace}, of which {margin:g} s are the supervisor's; the longest save took {longest:.1f} s ({where})"
    if longest + margin > grace:
        yield Fact(
            check="grace",
            verdict="bad",
            fact=fact,
            do=f"set grace_s of the site to {int(1.5 * longest + 5) + 1} or more: a stop would lose what came after the last save",
        )
    else:
        yield Fact(check="grace", verdict="ok", fact=fact)


def newest_events(folder: JobFolder) -> Iterator[dict[str, Any]]:
    """Those in the newest attempt's last segments. Lines that a cut or a kill has torn are passed over."""
    attempts = folder.attempt_numbers()
    keys = folder.segments("events", attempts[-1], SOURCE)[-SEGMENTS:] if attempts else []
    for line in b"".join(folder.store.read(key) for key in keys).splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event


def longest_save(runs: Runs) -> tuple[float | None, str]:
    """Seconds and run/stage; (None, "") where none was made. Newest runs by name are looked at, their newest attempts only."""
    longest, where = None, ""
    for run_id in sorted(runs.ids())[-RUNS:]:
        run = runs.run(run_id)
        for stage in run.stages if run else ():
            assert run is not None
            for seconds in saves(runs.stage(run, stage)):
                if longest is None or seconds > longest:
                    longest, where = seconds, f"{run_id}/{stage}"
    return longest, where


def saves(folder: JobFolder) -> Iterator[float]:
    """From the moment the trainer was asked until the commit, by the same rank's clock."""
    began: dict[int, float] = {}
    for event in newest_events(folder):
        step, at = event.get("step"), event.get("t")
        if not isinstance(step, int) or not isinstance(at, int | float):
            continue
        if event.get("name") == "phase" and event.get("value") == "staging":
            began[step] = at
        elif event.get("name") == "checkpoint_committed" and step in began:
            yield at - began.pop(step)
