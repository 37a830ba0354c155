"""The figures of `cluster_scale.py` as workloads/results/scale.md. Made from the figures alone."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults_table import commit, machine, replace_page

REQUESTS_SHOWN = 6


def write_table(path: Path, figures: dict[str, Any], command: str) -> None:
    """Replaces the page."""
    replace_page(path, page(figures, command))


def page(figures: dict[str, Any], command: str) -> Iterator[str]:
    """The lines. What was not run has no row."""
    yield "# Many stages on a cluster"
    yield ""
    yield f"`{command}`, {datetime.date.today():%Y-%m-%d}, commit {commit()}, {machine()}."
    yield f"{figures['nodes']:,} nodes that KWOK pretends; API server, etcd, scheduler, Kueue, JobSet, KWOK, S3 and our process share these"
    yield f"cores (load {figures['load_before']:.1f} before, {figures['load_after']:.1f} after)."
    yield f"Pods run {figures['run_s']} s on paper, at most {figures['quota']:,} at a time. Written by the script itself."
    yield ""
    yield "| what | tries | figure | limit | met |"
    yield "| --- | --- | --- | --- | --- |"
    if found := figures.get("pace"):
        yield from pace(found, figures["limit_s"])
    if found := figures.get("burst"):
        yield from burst(found)
    for part in ("pace", "burst"):
        if found := figures.get(part):
            yield ""
            most = list(found["our_requests"].items())[:REQUESTS_SHOWN]
            yield f"Our client's requests, {part}: " + ", ".join(f"{count:,} {kind}" for kind, count in most) + "."
            if trouble := [*found["lost"][:5], *found["doubled"][:5], *found["errors"]]:
                yield f"Trouble: {'; '.join(trouble)}"


def pace(found: dict[str, Any], limit_s: float) -> Iterator[str]:
    """Submits at a rate."""
    what = f"{found['rate']:g} submits/s for {found['seconds']:g} s, {found['pods']} pods each: due → JobSet created"
    yield row(what, found["stages"], seconds(found["created_s"]), f"p99 < {limit_s:g} s", found["created_s"]["p99"] < limit_s)
    yield row("the same → the intent log says submitted", found["stages"], seconds(found["submitted_s"]), "", None)
    yield from common(found)


def burst(found: dict[str, Any]) -> Iterator[str]:
    """All at once."""
    figure = f"{found['submits_per_s']:.1f} submits/s; the last stage ended after {found['ended_s']:.0f} s"
    yield row(f"{found['stages']} stages of {found['pods']} pods at once, three priorities", found["stages"], figure, "", None)
    yield from common(found)
    waits = ", ".join(f"{name.rpartition('-')[2]} {wait:.0f} s" for name, wait in found["wait_p50_by_priority"].items() if wait is not None)
    yield row("JobSet created → all pods run for good, p50 by priority", found["stages"], waits, "the higher the sooner", in_order(found))
    figure = f"{found['evictions']} evictions, {found['restarts']} restarts of a JobSet"
    yield row("pushed out by a higher priority", found["stages"], figure, "0 restarts", not found["restarts"])
    memory = f"{found['memory_before_mb']:.0f} MiB before, {found['memory_peak_mb']:.0f} MiB at most, {found['threads_peak']} threads"
    yield row("memory of the one process that submits and watches all", 1, memory, "", None)


def common(found: dict[str, Any]) -> Iterator[str]:
    """Of either part."""
    count = found["stages"]
    ended = f"{found['done']} ended well, {len(found['lost'])} lost, {len(found['doubled'])} doubled"
    made = f"{ended}; the API server made {found['made_by_the_api_server']} JobSets"
    whole = found["done"] == count == found["made_by_the_api_server"] and not found["lost"] and not found["doubled"]
    yield row("none lost, none doubled, all at an end, in the cluster and in the bucket", count, made, "all, 0, 0", whole)
    yield row("JobSet created → all pods run (whole seconds)", count, seconds(found["running_s"]), "", None)
    figure = f"{found['our_requests_per_stage']:g} of our client, {found['all_requests_per_stage']:g} of everybody"
    yield row("requests to the API server per stage", count, figure, "", None)


def in_order(found: dict[str, Any]) -> bool:
    """The more important did not wait longer."""
    waits = [wait for wait in found["wait_p50_by_priority"].values() if wait is not None]
    return waits == sorted(waits, reverse=True)


def seconds(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in found.items() if value is not None)


def row(what: str, tries: int, figure: str, limit: str, met: bool | None) -> str:
    return f"| {what} | {tries} | {figure} | {limit} | {'' if met is None else 'yes' if met else '**no**'} |"
