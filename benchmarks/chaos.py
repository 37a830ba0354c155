"""Kills at every phase of training, in every way; each run must end bit for bit as one that nobody touched. And what is offered meanwhile?

    python benchmarks/chaos.py --kills-per-phase 15 --torn 500         all of it, about 30 minutes on two quiet cores; writes the page
    python benchmarks/chaos.py --kills-per-phase 2 --phases commit gc  a part of it; writes no page, unless --markdown names one

Each run is one job of MM1's miniature: real supervisors, torchrun, gloo ranks, the trainer, saving processes. A kill is committed at a line
of the trainer or of the saving process itself, or while a supervisor restarts. Runs that are done are kept in --state: what was stopped
goes on where it was, with the same --seed. Exact: weights digest, loss and hash of sample ids at every step, tokens and images.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chaos_table import PAGE, write_table
from faults_table import ROOT, commit
from stagecoach.testing.chaos import GRACE_S, IN_PLACE, PHASES, SAVING, STARTING, ChaosRun, Kill, Story, differences, draw_kills, steps_for
from stagecoach.testing.s3_server import bucket, s3_server
from stagecoach.testing.training import DATASETS, toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus
from torn import kill_saving_processes

SCRATCH = tempfile.TemporaryDirectory(prefix="chaos-")
STEPS = 114  # of every run; room for twelve kills in mid-run
PER_RUN = 11  # kills
MORE = {"two nodes": 8, "S3": 12, "4 ranks": 10}  # kills, beside those for each phase
WAYS = ("rank", "supervisor", "ranks", "term5", "rank", "term0", "saver", "term1")  # in turn


@dataclass(frozen=True)
class Order:
    """One run."""

    name: str
    place: str  # "file", or one of MORE
    kills: tuple[Kill, ...]


def main() -> int:
    arguments = parse()
    began, load = time.monotonic(), os.getloadavg()[0]
    corpus = f"file://{SCRATCH.name}/corpus"
    make_corpus(corpus, profile="tiny", only=DATASETS)
    known = read_state(arguments)
    whole = references(corpus, known, arguments)
    orders = draw(arguments)
    total = sum(len(order.kills) for order in orders)
    for number, order in enumerate(orders, start=1):
        if order.name in known:
            continue
        if arguments.minutes and time.monotonic() - began > arguments.minutes * 60:
            print(f"{arguments.minutes:g} minutes are over; start it again to go on", flush=True)
            break
        known[order.name] = one_run(corpus, order, whole["4 ranks" if order.place == "4 ranks" else "2 ranks"])
        remember(arguments, known)
        tell(order, known[order.name], f"run {number} of {len(orders)}, {struck(known, orders)} of {total} kills")
    torn = kill_saving_processes(arguments.torn, seed=arguments.seed) if arguments.torn else None
    figures = summary(known, orders, torn) | {"load_before": load, "load_after": os.getloadavg()[0]}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    page = arguments.markdown or (PAGE if set(arguments.phases) == set(PHASES) and arguments.torn else None)
    if page:
        write_table(page, figures, command(arguments))
        print(f"written: {page}")
    print(json.dumps({name: value for name, value in figures.items() if name != "kills"}, indent=1))
    return 0 if figures["met"] else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills-per-phase", type=int, default=15, help="in one node over file://; two nodes, four ranks and S3 come on top"
    )
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--torn", type=int, default=0, help="kills of a saving process in a tight loop")
    parser.add_argument("--minutes", type=float, help="begin no run after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="where runs that are done are kept; by default a file in the temporary folder")
    parser.add_argument("--json", type=Path, help="the figures, as one JSON object")
    parser.add_argument("--markdown", type=Path, help=f"the table; when everything is run it is {PAGE.relative_to(ROOT)} without this")
    return parser.parse_args()


def command(arguments: argparse.Namespace) -> str:
    """What to type for such a page."""
    phases = [] if set(arguments.phases) == set(PHASES) else ["--phases", *arguments.phases]
    words = ["python benchmarks/chaos.py --kills-per-phase", arguments.kills_per_phase, *phases, "--torn", arguments.torn]
    return " ".join(map(str, [*words, "--seed", arguments.seed]))


# --- what is to be done


def draw(arguments: argparse.Namespace) -> list[Order]:
    """Every run, the same ones for a seed."""
    chance = random.Random(arguments.seed)
    orders = [
        Order(f"file {number}", "file", tuple(draw_kills(chance, pairs, ranks=2)))
        for number, pairs in enumerate(deal(pairs_for(arguments.phases, arguments.kills_per_phase), chance))
    ]
    for place, count in MORE.items():
        share = max(1, count * arguments.kills_per_phase // 15)
        ways = tuple(way for way in WAYS if place != "4 ranks" or way in IN_PLACE)  # its figure is of restarts in place
        phases = [phase for phase in arguments.phases if phase != "restart" or place != "two nodes"]
        pairs = pairs_for(phases, -(-share // max(1, len(phases))), ways)
        chance.shuffle(pairs)
        orders += [
            Order(
                f"{place} {number}",
                place,
                tuple(draw_kills(chance, part, ranks=4 if place == "4 ranks" else 2)),
            )
            for number, part in enumerate(deal(pairs[:share], chance))
        ]
    assert all(steps_for(order.kills) <= STEPS for order in orders), "a kill would come after the last step"
    return orders


def pairs_for(phases: list[str], count: int, ways: tuple[str, ...] = WAYS) -> list[tuple[str, str]]:
    """(phase, way): so many for each phase, its ways in turn, begun elsewhere for each so that few kills meet all ways."""
    found = []
    for number, phase in enumerate(phases):
        able = [way for way in ways if is_able(phase, way)]
        found += [(phase, able[(number + turn) % len(able)]) for turn in range(count)]
    return found


def is_able(phase: str, way: str) -> bool:
    """A saving process is not there, or has nothing to do, in other phases; a restart in place is over once somebody asks to stop."""
    return not (way == "saver" and phase not in SAVING) and not (phase == "restart" and way in GRACE_S)


def deal(pairs: list[tuple[str, str]], chance: random.Random) -> Iterator[list[tuple[str, str]]]:
    """Into runs of about PER_RUN, each with enough kills in mid-run before those that come while it starts."""
    moving = [pair for pair in pairs if pair[0] not in STARTING]
    chance.shuffle(moving)
    moving.sort(key=lambda pair: pair[1] in IN_PLACE)  # every run gets its share of those that a restart in place follows
    starting = [pair for pair in pairs if pair[0] in STARTING]
    runs = max(-(-len(pairs) // PER_RUN), 1)
    for run in range(runs):
        here, there = moving[run::runs], starting[run::runs]
        restarts = sum(phase == "restart" for phase, _ in there)
        short = max(len(there) - len(here), restarts + 1 - sum(way in IN_PLACE for _, way in here), 0)
        yield here + there + [("forward", "rank")] * short


# --- doing it


def references(corpus: str, known: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Story]:
    """Runs that nobody touches: one of two ranks, the same again, one of four ranks. Raises SystemExit when the second differs."""
    found = {}
    for name in ("2 ranks", "2 ranks again", "4 ranks"):
        if name not in known:
            place = "4 ranks" if name == "4 ranks" else "file"
            known[name] = plain(story_of(corpus, Order(name, place, ())))
            remember(arguments, known)
            print(f"uninterrupted, {name}: {known[name]['digest'][:16]}", flush=True)
        found[name] = story(known[name])
    if wrong := differences(found["2 ranks again"], found["2 ranks"]):
        raise SystemExit(f"two uninterrupted runs differ, so nothing can be said of others: {wrong}")
    return found


def one_run(corpus: str, order: Order, whole: Story) -> dict[str, Any]:
    """Its figures. What went wrong is one of them."""
    try:
        found = story_of(corpus, order)
        wrong = differences(found, whole)
    except AssertionError as error:
        return {"kills": [], "wrong": [str(error)], "commit": commit()}
    return plain(found) | {"wrong": wrong}


def story_of(corpus: str, order: Order) -> Story:
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    ranks, nodes = {"4 ranks": (4, 1), "two nodes": (1, 2)}.get(order.place, (2, 1))
    with ExitStack() as stack:
        uri = None
        if order.place == "S3":
            server = stack.enter_context(s3_server())
            stack.enter_context(patch.dict(os.environ, server.environment))  # the next run has a server of its own
            uri = f"s3://{stack.enter_context(bucket(server))}/job"
        plan = toy_stage(corpus, [f"duration.steps={STEPS}"])
        return ChaosRun(folder, plan, order.kills, ranks=ranks, nodes=nodes, uri=uri, seed=len(order.name)).run(timeout_s=1800)


def plain(found: Story) -> dict[str, Any]:
    kept = asdict(found)
    kept["kills"] = kept.pop("struck")
    return kept | {"commit": commit()}


def story(kept: dict[str, Any]) -> Story:
    """Back from JSON, where keys are text."""
    numbers = {name: {int(step): value for step, value in kept[name].items()} for name in ("losses", "ids")}
    return Story(**numbers, **{name: kept[name] for name in ("digest", "tokens", "images")})


def state_file(arguments: argparse.Namespace) -> Path:
    return Path(arguments.state or Path(tempfile.gettempdir()) / "stagecoach-chaos.json")


def read_state(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was done already with these arguments. Each run says by which commit."""
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads(state_file(arguments).read_text())
        if kept["of"] == identity(arguments):
            return dict(kept["runs"])
    return {}


def remember(arguments: argparse.Namespace, known: dict[str, Any]) -> None:
    whole = state_file(arguments).with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps({"of": identity(arguments), "runs": known}))
    whole.rename(state_file(arguments))


def identity(arguments: argparse.Namespace) -> list[Any]:
    return [arguments.seed, arguments.kills_per_phase, list(arguments.phases), STEPS]


# --- what it came to


def struck(known: dict[str, Any], orders: list[Order]) -> int:
    return sum(len(known[order.name]["kills"]) for order in orders if order.name in known)


def tell(order: Order, found: dict[str, Any], where: str) -> None:
    verdict = "NOT exact: " + "; ".join(found["wrong"])[:2000] if found["wrong"] else "exact"
    print(f"{where}: {order.name}, {len(found['kills'])} kills, {found.get('attempts', '?')} attempts, {verdict}", flush=True)


def summary(known: dict[str, Any], orders: list[Order], torn: dict[str, Any] | None) -> dict[str, Any]:
    """All kills with what each came to, and whether every limit is met."""
    kills: list[dict[str, Any]] = []
    lost: dict[str, list[int]] = {}
    wrong: list[str] = []
    for order in orders:
        found = known.get(order.name)
        if found is None:
            continue
        wrong += [f"{order.name}: {text}" for text in found["wrong"]]
        kills += [{**each["kill"], **each, "place": order.place, "exact": not found["wrong"]} for each in found["kills"]]
        for way, steps in found.get("steps_lost", {}).items():
            lost.setdefault(way, []).extend(steps)
    offered = len(kills) + (torn["kills"] if torn else 0)
    bad = sum(bool(each["torn"]) for each in kills) + (torn["torn"] if torn else 0)
    done = [known[order.name] for order in orders if order.name in known]
    return {
        "kills": kills, "count": len(kills), "exact": sum(each["exact"] for each in kills), "wrong": wrong, "torn": torn,
        "steps_lost": lost, "commits": sorted({found["commit"] for found in done}), "runs": len(orders), "done": len(done),
        "offered": offered, "offered_torn": bad, "met": not wrong and not bad and len(done) == len(orders),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
